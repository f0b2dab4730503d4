from .compare import compare_geometries, mid_run
from .stored_losses import read_losses

__all__ = [
    "compare_geometries",
    "mid_run",
    "read_losses",
]
