"""Energies of vectors in the buckets of a fold, by layer, for any number of layers.

The variance of a sketch sums products of energies over pairs of elements in the same bucket. One
pair of layers at a time, that costs the square of the number of layers. Here the energy density
of a gradient is summed over all layers first, bucket by bucket, and then multiplied with the
energies of the other vector.
"""

from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

KEPT: Final = 16
"""Number of layouts whose intervals are kept: all windows of a run share a few of them."""


class Intervals(NamedTuple):
    """Intervals of buckets in which no layer begins or ends in any row."""

    borders: IntArray  # first bucket of each interval
    first: IntArray  # interval of each layer's first element, (layer,)
    stop: IntArray  # interval of the element after each layer, (layer,)
    whole: (
        IntArray  # number of rows that a layer fills, (layer,); see `bucket_densities`
    )


class Owners(NamedTuple):
    """The layers that own the intervals of some rows, as the structure of a sparse matrix."""

    slots: IntArray  # number of each sum among the pairs of layer and interval, (row, interval)
    indices: IntArray  # interval of each pair
    starts: IntArray  # first pair of each layer, (layer + 1,)


def bucket_borders(offsets: IntArray, sizes: IntArray, width: int) -> IntArray:
    """Return the first buckets of `Intervals`, (interval,)."""
    return _intervals(offsets.tobytes(), sizes.tobytes(), width).borders


@lru_cache(maxsize=KEPT)
def _intervals(offsets: bytes, sizes: bytes, width: int) -> Intervals:
    """Return the intervals of layers at int64 `offsets` with int64 `sizes`."""
    start, n = np.frombuffer(offsets, np.int64), np.frombuffer(sizes, np.int64)
    first, stop = start % width, (start + n) % width
    borders = np.unique(np.concatenate([[0], first, stop]))
    places = np.searchsorted(borders, first), np.searchsorted(borders, stop)
    return Intervals(borders, *places, n // width + (stop < first))


def bucket_densities(
    density: FloatArray, offsets: IntArray, sizes: IntArray, width: int
) -> FloatArray:
    """Return the energy in one bucket of each interval, float64 (step, interval)."""
    # `density` is the energy of each element of a layer, (step, layer). A layer of n elements
    # has n // width of them in every bucket, and one more in the buckets from its first
    # element on, n % width buckets long; that range may wrap around.
    borders, first, stop, whole = _intervals(offsets.tobytes(), sizes.tobytes(), width)
    changes = np.zeros((len(borders), len(density)))
    by_layer = np.asarray(density, np.float64).T
    np.add.at(changes, first, by_layer)
    np.subtract.at(changes, stop, by_layer)
    changes[0] += whole @ by_layer
    return np.cumsum(changes, axis=0).T


def interval_sums(
    squares: FloatArray, offsets: IntArray, sizes: IntArray
) -> FloatArray:
    """Sum squares, (row, bucket), over intervals of buckets, (row, interval)."""
    borders = bucket_borders(offsets, sizes, squares.shape[1])
    # float32 is enough for sums of a few hundred terms that only affect standard errors.
    return np.add.reduceat(squares, borders, axis=1)


def bucket_energies(
    sums: FloatArray, first_row: int, offsets: IntArray, sizes: IntArray, width: int
) -> csr_array:
    """Return the energy of a vector by layer and interval of buckets, (layer, interval)."""
    # `sums` are the `interval_sums` of the vector's squares in the rows of the fold from
    # `first_row` on. Elements between layers are 0. `offsets` must ascend.
    places = offsets.tobytes(), sizes.tobytes(), width
    slots, indices, starts = _owners(*places, first_row, len(sums))
    energies = np.bincount(slots.reshape(-1), sums.reshape(-1), len(indices) + 1)
    shape = len(sizes), len(bucket_borders(offsets, sizes, width))
    return csr_array((energies[:-1], indices, starts), shape)


@lru_cache(maxsize=KEPT)
def _owners(
    offsets: bytes, sizes: bytes, width: int, first_row: int, n_rows: int
) -> Owners:
    """Find the layers of `n_rows` rows of the fold; the last slot takes the gaps."""
    borders = _intervals(offsets, sizes, width).borders
    start, n = np.frombuffer(offsets, np.int64), np.frombuffer(sizes, np.int64)
    first = (first_row + np.arange(n_rows))[:, None] * width + borders
    layers = np.searchsorted((start + n)[n > 0], first, side="right")
    # The gap after the last layer belongs to no layer.
    owner = np.append(np.flatnonzero(n > 0), len(n))[layers]
    pairs = owner * len(borders) + np.arange(len(borders))
    found, slots = np.unique(pairs, return_inverse=True)
    n_pairs = np.searchsorted(found, len(n) * len(borders))
    starts = np.searchsorted(found[:n_pairs], len(borders) * np.arange(len(n) + 1))
    slots = np.minimum(slots.reshape(pairs.shape), n_pairs)
    return Owners(slots, found[:n_pairs] % len(borders), starts)


def layer_pieces(
    rows: slice, offsets: IntArray, sizes: IntArray, width: int
) -> list[tuple[int, int, slice]]:
    """Cut `rows` of the fold at the borders of layers; return (layer, row, columns)."""
    # Rows are counted from ``rows.start``.
    first, last = rows.start * width, rows.stop * width
    pieces = []
    for i, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        start, stop = max(int(offset), first), min(int(offset + size), last)
        while start < stop:
            row, column = divmod(start - first, width)
            end = min(stop - start + column, width)
            pieces.append((i, row, slice(column, end)))
            start += end - column
    return pieces
