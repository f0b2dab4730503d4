"""Format numbers as ranges."""

from collections.abc import Iterable
from typing import Final

MAX_RANGES: Final = 8
"""Largest number of ranges to write out."""


def as_ranges(numbers: Iterable[int]) -> str:
    """Return numbers as text, such as ``0-3, 7``; count the ranges beyond `MAX_RANGES`."""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    texts = [f"{a}-{b}" if b > a else f"{a}" for a, b in runs]
    n_left = len(texts) - MAX_RANGES
    return ", ".join(
        texts[:MAX_RANGES] + ([f"and {n_left} more"] if n_left > 0 else [])
    )
