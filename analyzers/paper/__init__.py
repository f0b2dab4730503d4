"""The figures of "No Wrong Turns", from recorded runs."""

from analyzers.paper.curves import Shown
from analyzers.paper.figures import FIGURES, draw_figure, what_is_missing
from analyzers.paper.page import write_page

__all__ = ["FIGURES", "Shown", "draw_figure", "what_is_missing", "write_page"]
