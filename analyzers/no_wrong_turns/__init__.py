"""The figures of "No Wrong Turns", from recorded runs."""

from analyzers.no_wrong_turns.curves import Shown
from analyzers.no_wrong_turns.figures import FIGURES, draw_figure, what_is_missing
from analyzers.no_wrong_turns.page import write_page

__all__ = ["FIGURES", "Shown", "draw_figure", "what_is_missing", "write_page"]
