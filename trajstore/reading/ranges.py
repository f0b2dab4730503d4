"""Numbers as a reader counts them."""

from collections.abc import Iterable
from typing import Final

MOST: Final = 8
"""Ranges that are written out."""


def as_ranges(numbers: Iterable[int]) -> str:
    """Write numbers as ranges, in order, the first few of them: ``0-3, 7``."""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    texts = [f"{a}-{b}" if b > a else f"{a}" for a, b in runs]
    left_out = [f"and {len(texts) - MOST} more"] if len(texts) > MOST else []
    return ", ".join(texts[:MOST] + left_out)
