from .readings import Readings
from .server import Follower, serve, wait_for_steps

__all__ = [
    "Follower",
    "Readings",
    "serve",
    "wait_for_steps",
]
