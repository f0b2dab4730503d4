from .cluster import connected
from .progress import compute, current_client, task_progress
from .results import load, store_result

__all__ = [
    "compute",
    "connected",
    "current_client",
    "load",
    "store_result",
    "task_progress",
]
