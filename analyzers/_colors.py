"""Colours of every figure and page; importing them needs no plotting library."""

from typing import Final

NEGATIVE: Final = "#B2182B"
POSITIVE: Final = "#2166AC"
"""Red and blue of bars and shades; the ends of `SIGNED` look the same."""

SIGNED: Final = "RdBu"
"""Colour map of quantities that may be negative; centred on 0."""

UNSIGNED: Final = "viridis"
"""Colour map of quantities that are never negative, and of ordered lines."""

COLORS: Final = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#56B4E9"),
    *("#8C6D1F", "#9A9A9A"),
)
"""Colours of runs: the palette of Okabe and Ito without its red and its yellow, then a brown and
a grey."""
