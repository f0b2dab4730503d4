"""Cut ranges into pieces that fit into memory or a core's cache."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from trajstore.format.layout import BLOCK, Layout

SEGMENT: Final = 1 << 15
"""Elements per segment; the segments of all vectors fit into a core's cache."""


def slices(whole: slice, length: int) -> list[slice]:
    """Cut a slice into slices of `length`; the last slice may be shorter."""
    return [
        slice(i, min(i + length, whole.stop))
        for i in range(whole.start, whole.stop, length)
    ]


def segments(layout: Layout, elements: slice) -> list[tuple[int, slice]]:
    """Cut `elements` into segments of one layer each; return (layer, part of `elements`)."""
    # The gap after a layer counts as part of the layer.
    ends = layout.offsets + BLOCK * layout.blocks
    pieces = []
    inside = slice(
        int(np.searchsorted(ends, elements.start, side="right")),
        int(np.searchsorted(layout.offsets, elements.stop)),
    )
    places = zip(layout.offsets[inside].tolist(), ends[inside].tolist(), strict=True)
    for layer, (offset, end) in enumerate(places, start=inside.start):
        first = max(offset, elements.start) - elements.start
        last = min(end, elements.stop) - elements.start
        pieces += [(layer, piece) for piece in slices(slice(first, last), SEGMENT)]
    return pieces


def joined(parts: Sequence[slice]) -> list[tuple[slice, slice]]:
    """Join neighbouring slices to slices of at most `SEGMENT`; return each with its parts' numbers."""
    whole: list[tuple[slice, slice]] = []
    for i, part in enumerate(parts):
        if whole and part.stop - whole[-1][0].start <= SEGMENT:
            before, numbers = whole[-1]
            whole[-1] = slice(before.start, part.stop), slice(numbers.start, i + 1)
        else:
            whole.append((part, slice(i, i + 1)))
    return whole
