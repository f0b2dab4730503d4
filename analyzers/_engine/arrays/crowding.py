"""Energies of vectors in the buckets of a fold, by layer, for any number of layers.

The variance of a sketch sums products of energies over pairs of elements in the same bucket. One
pair of layers at a time, that costs the square of the number of layers. Here the energy density
of a gradient is summed over all layers first, bucket by bucket, and then multiplied with the
energies of the other vector.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]


def bucket_borders(offsets: IntArray, sizes: IntArray, width: int) -> IntArray:
    """Return the first buckets of intervals in which no layer begins or ends in any row."""
    borders = np.concatenate([[0], offsets % width, (offsets + sizes) % width])
    return np.unique(borders)


def bucket_densities(
    density: FloatArray, offsets: IntArray, sizes: IntArray, width: int
) -> FloatArray:
    """Return the energy in one bucket of each interval, float64 (step, interval)."""
    # `density` is the energy of each element of a layer, (step, layer). A layer of n elements
    # has n // width of them in every bucket, and one more in the buckets from its first
    # element on, n % width buckets long; that range may wrap around.
    borders = bucket_borders(offsets, sizes, width)
    first, stop = offsets % width, (offsets + sizes) % width
    changes = np.zeros((len(borders), len(density)))
    by_layer = np.asarray(density, np.float64).T
    np.add.at(changes, np.searchsorted(borders, first), by_layer)
    np.subtract.at(changes, np.searchsorted(borders, stop), by_layer)
    changes[0] += (sizes // width + (stop < first)) @ by_layer
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
    n_rows = len(sums)
    borders = bucket_borders(offsets, sizes, width)
    first = (first_row + np.arange(n_rows))[:, None] * width + borders
    layers = np.searchsorted((offsets + sizes)[sizes > 0], first, side="right")
    # The gap after the last layer belongs to no layer: its sums are dropped.
    owner = np.append(np.flatnonzero(sizes > 0), len(sizes))[layers]
    interval = np.broadcast_to(np.arange(len(borders)), owner.shape)
    kept = owner < len(sizes)
    places = owner[kept], interval[kept]
    shape = len(sizes), len(borders)
    return coo_array((sums[kept].astype(np.float64), places), shape).tocsr()


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
