"""Find the ranges of elements that kernels for CPUs measure one after the other.

A range is a part of one tensor whose elements are neighbours both in the memory of this rank and in
the flat vector of all tensors, and it lies in one block. The ranges of a whole tensor are its blocks,
and so are those of a shard of rows, except at its ends. A shard of columns has at least one range
in every row.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from trajstore.format.layout import BLOCK
from trajstore.tracking.placement import Placement

Integers = npt.NDArray[np.int64]

# Columns of `ranges_of`: index of the layer; index of the tensor in `LocalTensors`;
# first element in the rank's flat vector, and in the memory of the tensor; number of elements; place
# of the first element in the vector that is folded.
LAYER: Final = 0
TENSOR: Final = 1
START: Final = 2
INDEX: Final = 3
LENGTH: Final = 4
PLACE: Final = 5
N_FACTS: Final = 6


def ranges_of(placement: Placement, offsets: Integers) -> Integers:
    """Return the ranges of a rank, (range, 6), for places of tensors in the folded vector (layer,)."""
    layout, is_whole = placement.layout, placement.group is None
    parts, kept, local = [np.zeros((0, 6), np.int64)], iter(placement.kept), 0
    for layer, piece in enumerate(placement.pieces):
        if piece is not None:
            blocks, _ = next(kept)
            starts, indexes, lengths = _cut(*piece.runs())
            block = np.searchsorted(blocks, starts // BLOCK)
            columns = (
                np.full_like(starts, layer),
                np.full_like(starts, layer if is_whole else len(parts) - 1),
                local + BLOCK * block + starts % BLOCK,
                indexes,
                lengths,
                offsets[layer] + starts - layout.offsets[layer],
            )
            parts.append(np.stack(columns, 1))
            local += BLOCK * len(blocks)
    return np.concatenate(parts)


def bounds_of(ranges: Integers, n_parts: int) -> Integers:
    """Return the first range of each part, and the number of ranges, (part + 1,)."""
    # No block is in two parts, which run at the same time and add to the energies of blocks.
    blocks = ranges[:, START] // BLOCK
    n_blocks = int(blocks[-1]) + 1 if len(blocks) else 0
    return np.searchsorted(
        blocks, np.linspace(0, n_blocks, n_parts + 1).astype(np.int64)
    ).astype(np.int64)


def _cut(starts: Integers, n: int) -> tuple[Integers, Integers, Integers]:
    """Cut runs of n elements at the borders of blocks; return starts, indexes and lengths."""
    blocks = starts // BLOCK
    counts = (starts + n - 1) // BLOCK - blocks + 1
    run = np.repeat(np.arange(len(starts)), counts)
    within = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)
    border = BLOCK * (blocks[run] + within)
    first = np.maximum(starts[run], border)
    stop = np.minimum(starts[run] + n, border + BLOCK)
    return first, run * n + first - starts[run], stop - first
