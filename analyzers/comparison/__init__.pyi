from .compare import compare_geometries, mid_run
from .grouping import configurations
from .over_seeds import average_configurations
from .stored_losses import read_losses

__all__ = [
    "average_configurations",
    "compare_geometries",
    "configurations",
    "mid_run",
    "read_losses",
]
