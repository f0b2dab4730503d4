"""Numbers as a reader counts them."""

from collections.abc import Iterable


def as_ranges(numbers: Iterable[int]) -> str:
    """Write numbers as ranges, in order: ``0-3, 7``."""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs)
