from .curves import EpochSelection
from .figures import draw_figure
from .page import write_page
from .runs import describe, find_runs

__all__ = [
    "EpochSelection",
    "describe",
    "draw_figure",
    "find_runs",
    "write_page",
]
