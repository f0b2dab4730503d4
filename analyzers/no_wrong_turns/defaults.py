"""Names and defaults that the commands need before they import any large library."""

from typing import Final

from analyzers._reporting import FigureFiles

FIGURE_NAMES: Final = (
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "7",
    "8",
    "9",
    "10",
    "11",
    "12",
    "13",
    "14",
    "controls",
    "measurements",
    "theory",
)
"""Names of the figures in `analyzers.no_wrong_turns.figures.FIGURES`."""

SMALL_PNG: Final = FigureFiles(dpi=110)
