"""Read how the energy of a window's gradients is spread over blocks and buckets.

Tables hold the energy of every gradient by layer. Stores of recent versions also hold the energy
of every block of `trajstore.format.layout.BLOCK` elements, as a mean over the window. `Weights`
turn such energies into variances of products, in time and memory that are linear in the numbers
of blocks and buckets.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.crowding import (
    bucket_borders,
    bucket_densities,
    bucket_energies,
)
from analyzers._engine.tables import read_tables, sketch_weights
from trajstore.format.arrays import SUM_SCALES
from trajstore.format.layout import BLOCK
from trajstore.reading.run import Run
from trajstore.sketch.sketch import CODE_VARIANCE, FOLD_VARIANCE

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

FOLD_ROWS: Final = 8
"""Rows of the fold whose energies are summed in one batch."""


class Spread(NamedTuple):
    """Mean energies of the elements of a window's weighted gradients."""

    by_block: FloatArray  # energy of one element of each block, float64 (block,)
    even: FloatArray  # the same if energies are even within layers, float64 (block,)
    total: float  # energy of all elements
    steps: FloatArray  # energies of single gradients, relative to `total`, (step,)


class Weights(NamedTuple):
    """What each element of a vector adds to a variance, relative to its square."""

    # An element in row b and bucket j of the fold has the weight
    # ``by_bucket[b % n, j] - by_block[block]``.
    by_bucket: FloatArray  # (n, width)
    by_block: FloatArray  # (block,)

    def of_rows(self, first: int, n_rows: int) -> FloatArray:
        """Return the weights in rows of the fold, float32 (row, bucket)."""
        n, width = self.by_bucket.shape
        rows = np.arange(first, first + n_rows)
        elements = slice(first * width, (first + n_rows) * width)
        own = of_elements(self.by_block, elements).reshape(n_rows, width)
        return np.asarray(self.by_bucket[rows % n] - own, np.float32)


class WindowTotal(NamedTuple):
    """The decoded sketch of the sum of a window's gradients."""

    folds: FloatArray  # float32 (fold, width)
    row_signs: FloatArray  # float32 (row,)
    weights: Weights  # of the variance of its products

    def of_rows(self, first: int, n_rows: int) -> FloatArray:
        """Return the estimated elements, times column signs, in rows of the fold, (row, bucket)."""
        rows = np.arange(first, first + n_rows)
        signs = self.row_signs[rows]
        return signs[:, None] * self.folds[rows % len(self.folds)]


def spread(run: Run, window: int, steps: slice) -> Spread | None:
    """Return the energies of the gradients at `steps`, all in one window; None without any."""
    layout = run.layout
    layers = layout.layer_of_block
    energies = read_tables(run, steps)["grad_sq"] * sketch_weights(run, window) ** 2
    with np.errstate(invalid="ignore", over="ignore"):
        whole = energies.sum(1)
    is_known = np.isfinite(whole)
    if not whole[is_known].any():
        return None
    mean = energies[is_known].mean(0)
    even = (mean / np.maximum(layout.sizes, 1))[layers]
    total = float(mean.sum())
    by_block, relative = even, run.stored.block_energies(window)
    if relative is not None:
        counts = layout.elements_of_block
        sums = np.bincount(layers, relative * counts, minlength=len(mean))[layers]
        # A layer without recorded energy that has a gradient is taken as even.
        by_block = np.divide(
            mean[layers] * relative, sums, out=even.copy(), where=sums > 0
        )
    return Spread(by_block, even, total, whole / total)


def uneven_weights(run: Run, spread: Spread) -> Weights | None:
    """Return what uneven energies add to the variance of products, as a mean of the steps."""
    # None if energies are even within layers, as in stores of earlier versions.
    difference = spread.by_block - spread.even
    if not difference.any():
        return None
    return Weights(in_buckets(run, difference)[None], difference)


def window_total(run: Run, window: int, spread: Spread) -> WindowTotal | None:
    """Return the sum of a window's gradients; None if it is not stored."""
    folds = run.stored.window_sum(window)
    if folds is None:
        return None
    signs = run.stored.window_sum_of(window).row_signs
    return WindowTotal(folds, signs, _total_weights(run, window, spread))


def _total_weights(run: Run, window: int, spread: Spread) -> Weights:
    """Return the weights of the variance of products with the window's sum of gradients."""
    # As in `sketch_variance`, with a fold for every `n_folds`-th row. The scales of the code tell
    # the energies of the folds, because rotated numbers are nearly Gaussian. The energy is taken
    # to be spread over the elements as in the single gradients.
    n_folds, n_rows = run.spec.window_folds, run.stored.sketch.fold.n_rows
    scales = run.stored.rows(SUM_SCALES, slice(window, window + 1))[0].astype(
        np.float64
    )
    m = run.spec.sketch_numbers
    energies = 2 / np.pi * m * (scales**2).mean(1)
    density = spread.by_block * (energies.sum() / spread.total)
    rows = np.arange(n_rows)
    folded = [in_buckets(run, density, rows[i::n_folds]) for i in range(n_folds)]
    coded = CODE_VARIANCE / m * energies
    return Weights(FOLD_VARIANCE * np.stack(folded) + coded[:, None], density)


def displacement_products(
    run: Run,
    window: int,
    first_row: int,
    matrix: FloatArray,  # rows of a vector in the fold, from `first_row` on, (row, bucket)
    advance: FloatArray,  # the same rows of the displacement at the window's end
    advance_sq: float,  # squared norm of all rows of that displacement
) -> FloatArray:
    """Return products of a vector with the window's `displacement_sum`, and their variances."""
    # The result is float64 (2, layer), NaN if the sum is not stored.
    layout, stored = run.layout, run.stored
    if (total := stored.displacement_sum(window)) is None:
        return np.full((2, len(layout.sizes)), np.nan)
    # As in `sketch_variance`. The energy of the sum is taken to be spread over the elements as that
    # of the displacement at the window's end, and over other rows like over these.
    places, probes = (stored.folded_offsets, layout.sizes), stored.probes
    spread = np.zeros(matrix.shape[1])
    batches = [slice(i, i + FOLD_ROWS) for i in range(0, len(matrix), FOLD_ROWS)]
    for batch in batches:
        spread += np.square(advance[batch]).sum(0, dtype=np.float64)
    here = spread.sum()
    scales = [
        FOLD_VARIANCE * total.energy / sq if sq > 0 else 0.0
        for sq in (here, advance_sq)
    ]
    # One row has no pairs of elements in a bucket.
    is_folded = stored.sketch.fold.n_rows > 1
    by_bucket = (scales[0] * spread * is_folded).astype(np.float32)
    coded = np.float32(stored.sketch.code_variance * total.energy)
    result = np.zeros((2, len(layout.sizes)))
    for batch in batches:
        part, first = matrix[batch], first_row + batch.start
        rows = slice(first, first + len(part))
        signs = probes.row_signs[rows, None] * probes.fold.column_signs[rows]
        terms = part * (total.fold * signs)
        result[0] += bucket_energies(terms, first, *places).sum(1)
        weights = by_bucket + coded
        if is_folded:
            weights = weights - np.float32(scales[1]) * np.square(advance[batch])
        terms = np.square(part) * np.maximum(weights, 0)
        result[1] += bucket_energies(terms, first, *places).sum(1)
    return result


def in_buckets(
    run: Run, density: FloatArray, rows: IntArray | None = None
) -> FloatArray:
    """Return the energy in every bucket, given that of an element of each block, (bucket,)."""
    # If `rows` is given, only elements in these rows of the fold count.
    width = run.stored.sketch.fold.width
    starts = BLOCK * np.arange(len(density))
    sizes = run.layout.elements_of_block
    if rows is not None:
        starts, sizes, density = _cut(starts, sizes, density, rows, width)
    borders = bucket_borders(starts, sizes, width)
    by_interval = bucket_densities(density[None], starts, sizes, width)[0]
    return np.repeat(by_interval, np.diff(np.append(borders, width)))


def _cut(
    starts: IntArray, sizes: IntArray, density: FloatArray, rows: IntArray, width: int
) -> tuple[IntArray, IntArray, FloatArray]:
    """Cut blocks at the ends of rows, and keep the pieces in `rows`."""
    first = starts // width
    n_pieces = np.where(
        sizes > 0, (starts + np.maximum(sizes, 1) - 1) // width - first + 1, 0
    )
    block = np.repeat(np.arange(len(starts)), n_pieces)
    row = (
        first[block]
        + np.arange(len(block))
        - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
    )
    start = np.maximum(starts[block], row * width)
    stop = np.minimum((starts + sizes)[block], (row + 1) * width)
    kept = np.isin(row, rows)
    return start[kept], (stop - start)[kept], density[block][kept]


def of_elements(density: FloatArray, elements: slice) -> FloatArray:
    """Return the values of blocks for each of `elements`, float64 (element,)."""
    blocks = slice(elements.start // BLOCK, -(-elements.stop // BLOCK))
    first = elements.start - blocks.start * BLOCK
    n = elements.stop - elements.start
    values = np.zeros(n)
    known = np.repeat(density[blocks], BLOCK)[first : first + n]
    values[: len(known)] = known
    return values
