from .compare import compare_geometries, mid_run

__all__ = [
    "compare_geometries",
    "mid_run",
]
