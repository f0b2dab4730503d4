"""Read how the energy of a window's gradients is spread over blocks and buckets.

Tables hold the energy of every gradient by layer. Stores of recent versions also hold the energy
of every block of `trajstore.format.layout.BLOCK` elements, as a mean over the window. `Weights`
turn such energies into variances of products, in time and memory that are linear in the numbers
of blocks and buckets.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from analyzers._engine.arrays.crowding import (
    KEPT,
    bucket_borders,
    bucket_densities,
    bucket_energies,
    interval_sums,
)
from analyzers._engine.slices import slices
from analyzers._engine.tables import read_tables, sketch_weights
from trajstore.format.arrays import SUM_SCALES
from trajstore.format.layout import BLOCK, Layout
from trajstore.reading.run import Run
from trajstore.sketch.sketch import CODE_VARIANCE, FOLD_VARIANCE

FloatArray = npt.NDArray[np.floating[Any]]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Piece = tuple[int, int, slice]
"""Layer, row of the fold, and columns."""

SQUARES: Final = 1 << 19
"""Number of elements that are used in one batch; they fit into the cache of a core."""


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
    by_bucket: Float32Array  # (n, width)
    by_block: FloatArray  # (block,)

    def of_buckets(self, row: int, columns: slice) -> Float32Array:
        """Return the part of the weights that belongs to buckets, (bucket,)."""
        return self.by_bucket[row % len(self.by_bucket), columns]


class WindowTotal(NamedTuple):
    """The decoded sketch of the sum of a window's gradients."""

    # An element in row b and bucket j of the fold, times its column sign, is estimated as
    # ``row_signs[b] * folds[b % n, j]``.
    folds: Float32Array  # (n, width)
    row_signs: Float32Array  # (row,)
    weights: Weights  # of the variance of its products


class DisplacementWeights(NamedTuple):
    """The decoded sum of a window's displacements, and what products with it err by."""

    total: Float32Array  # its fold, (bucket,)
    folded: FloatArray  # the displacement at the window's end, (element,)
    by_bucket: Float32Array  # squares of that displacement by bucket, scaled, (bucket,)
    share: np.float32  # factor of the squares of its elements
    coded: np.float32  # part of the variance that the code adds to every element


class EnergySums(NamedTuple):
    """Sums over a vector whose rows of the fold, times column signs, are known."""

    by_interval: csr_array  # its energies, (layer, interval)
    uneven: FloatArray  # squares with `uneven_weights`, (layer,)
    # Product with the sum of the window's gradients, and its variance; NaN without it.
    window_sum: FloatArray  # (2, layer)


def gradient_energies(run: Run, window: int, steps: slice) -> FloatArray:
    """Return |w g|^2 at `steps`, all in one window, float64 (step, layer)."""
    return read_tables(run, steps)["grad_sq"] * sketch_weights(run, window) ** 2


def spread(run: Run, window: int, energies: FloatArray) -> Spread | None:
    """Return how the `gradient_energies` of a window are spread; None without any."""
    layout = run.layout
    layers = layout.layer_of_block
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
    by_interval, lengths = in_intervals(run, difference)
    by_bucket = np.repeat(by_interval.astype(np.float32), lengths)
    return Weights(by_bucket[None], difference)


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
    by_bucket = np.empty((n_folds, run.stored.sketch.fold.width), np.float32)
    for i, coded in enumerate(CODE_VARIANCE / m * energies):
        folded, lengths = in_intervals(run, density, np.arange(i, n_rows, n_folds))
        by_interval = FOLD_VARIANCE * folded + coded
        by_bucket[i] = np.repeat(by_interval.astype(np.float32), lengths)
    return Weights(by_bucket, density)


def energy_sums(
    run: Run,
    window: int,
    found: Spread | None,
    rows: slice,
    matrix: FloatArray,
    pieces: Sequence[Piece],
    before: Callable[[slice, Sequence[Piece]], None] = lambda *_: None,
) -> EnergySums:
    """Return sums over a vector that is `matrix` in `rows` of the fold, (row, bucket)."""
    # `pieces` are the `layer_pieces` of the rows. `before` is called with rows of the matrix and
    # their pieces before they are used, and may change them: they are then in the cache.
    layout = run.layout
    uneven = None if found is None else uneven_weights(run, found)
    total = None if found is None else window_total(run, window, found)
    n_layers, layers = len(layout.sizes), layout.layer_of_block
    # Blocks have no meaning in a packed sketch.
    places = run.stored.folded_offsets, layout.sizes
    width = run.stored.sketch.fold.width
    n_rows = cached_rows(width)
    buffer = np.empty((min(n_rows, len(matrix)), width), np.float32)
    sums = np.empty((len(matrix), len(bucket_borders(*places, width))))
    by_block, extra = np.zeros(len(layers)), np.zeros(n_layers)
    window_sum = np.full((2, n_layers), np.nan if total is None else 0.0)
    for part, pieces_ in by_rows(pieces, len(matrix), n_rows):
        before(part, pieces_)
        squares = np.square(matrix[part], out=buffer[: part.stop - part.start])
        sums[part] = interval_sums(squares, *places)
        first, energies = _block_energies(squares, (rows.start + part.start) * width)
        kept = energies[: len(layers) - first]
        by_block[first : first + len(kept)] += kept
        if uneven is None and total is None:
            continue
        for layer, i, columns in pieces_:
            row, values = rows.start + i, matrix[i, columns]
            own = squares[i - part.start, columns]
            if uneven is not None:
                extra[layer] += own @ uneven.of_buckets(row, columns)
            if total is not None:
                product = values @ total.folds[row % len(total.folds), columns]
                variance = own @ total.weights.of_buckets(row, columns)
                window_sum[0, layer] += total.row_signs[row] * product
                window_sum[1, layer] += variance
    return joined_sums(run, rows, sums, by_block, extra, window_sum, uneven, total)


def joined_sums(
    run: Run,
    rows: slice,
    sums: FloatArray,  # `interval_sums`, (row, interval)
    by_block: FloatArray,  # energies of blocks, (block,)
    extra: FloatArray,  # squares with the weights of `uneven`, (layer,)
    window_sum: FloatArray,  # as in `EnergySums`, (2, layer)
    uneven: Weights | None,
    total: WindowTotal | None,
) -> EnergySums:
    """Return the sums over a vector, given its sums by row, by block and by layer."""
    layers, n_layers = run.layout.layer_of_block, len(extra)
    places = run.stored.folded_offsets, run.layout.sizes
    if uneven is not None:
        extra -= np.bincount(layers, by_block * uneven.by_block, n_layers)
    if total is not None:
        of_elements = by_block * total.weights.by_block
        window_sum[1] -= np.bincount(layers, of_elements, n_layers)
    width = run.stored.sketch.fold.width
    by_interval = bucket_energies(sums, rows.start, *places, width)
    return EnergySums(by_interval, extra, window_sum)


def cached_rows(width: int) -> int:
    """Return the number of rows of the fold that fit into the cache of a core."""
    return max(1, SQUARES // width)


def by_rows(
    pieces: Sequence[Piece], stop: int, length: int = 1, *, first: int = 0
) -> Iterator[tuple[slice, Sequence[Piece]]]:
    """Yield slices of `length` rows of the fold with the `layer_pieces` in them."""
    # Pieces of successive layers lie in successive rows.
    row_of_piece = [row for _, row, _ in pieces]
    for part in slices(slice(first, stop), length):
        own = (bisect_left(row_of_piece, row) for row in (part.start, part.stop))
        yield part, pieces[slice(*own)]


def _block_energies(squares: Float32Array, start: int) -> tuple[int, Float32Array]:
    """Return the first block of consecutive elements, and the energies of all, (block,)."""
    flat = squares.reshape(-1)
    first = start // BLOCK
    borders = np.arange(first * BLOCK, start + len(flat), BLOCK) - start
    borders[0] = 0
    return first, np.add.reduceat(flat, borders)


def displacement_weights(
    run: Run,
    window: int,
    advance: Float32Array,  # the displacement f at the window's end, (element,)
    *,
    advance_sq: float,  # |f|^2 over all rows of the fold
    n_rows: int,  # rows that `advance` covers
) -> DisplacementWeights | None:
    """Return the window's `displacement_sum`, and its errors; None if it is not known."""
    stored, width = run.stored, run.stored.sketch.fold.width
    if (total := stored.displacement_sum(window)) is None:
        return None
    # As in `sketch_variance`. The energy of the sum is taken to be spread over the elements like
    # that of f, and over the buckets of other rows as over the buckets of these.
    folded = stored.folded(advance)
    by_bucket = _squares_by_bucket(folded, n_rows, width)
    if not np.isfinite(here := float(by_bucket.sum())):
        folded = np.nan_to_num(folded, nan=0.0, posinf=0.0, neginf=0.0)
        by_bucket = _squares_by_bucket(folded, n_rows, width)
        here = float(by_bucket.sum())
    by_bucket *= total.energy / here if here > 0 else 0.0
    share = np.float32(total.energy / advance_sq if advance_sq > 0 else 0.0)
    coded = np.float32(stored.sketch.code_variance * total.energy)
    return DisplacementWeights(total.fold, folded, by_bucket, share, coded)


def displacement_products(
    run: Run,
    known: DisplacementWeights,
    rows: slice,
    matrix: FloatArray,  # a vector in `rows` of the fold, (row, bucket)
    part: slice,  # rows of `matrix` to use
    pieces: Sequence[Piece],  # `layer_pieces` of these rows
) -> FloatArray:
    """Return products of a part of a vector with the sum of displacements, and their variances."""
    # The result is float64 (2, layer).
    probes = run.stored.probes
    result = no_product(run, is_known=True)
    weights, signed = np.empty((2, matrix.shape[1]), np.float32)
    for i, own in by_rows(pieces, part.stop, first=part.start):
        row = rows.start + i.start
        _write_squares(known.folded, i.start, out=weights)
        weights *= known.share
        np.subtract(known.by_bucket, weights, out=weights)
        np.maximum(weights, 0, out=weights)
        weights *= np.float32(FOLD_VARIANCE)
        weights += known.coded
        np.multiply(probes.fold.column_signs[row], known.total, out=signed)
        for layer, place, columns in own:
            values = matrix[place, columns]
            product = values @ signed[columns]
            result[0, layer] += probes.row_signs[row] * product
            result[1, layer] += np.square(values) @ weights[columns]
    return result


def no_product(run: Run, *, is_known: bool) -> FloatArray:
    """Return products and variances before anything is added, (2, layer), NaN if not known."""
    return np.full((2, len(run.layout.sizes)), 0.0 if is_known else np.nan)


def _squares_by_bucket(folded: FloatArray, n_rows: int, width: int) -> Float32Array:
    """Return the energies of a vector in the buckets of a fold, float32 (bucket,)."""
    squares, total = np.zeros((2, width), np.float32)
    for row in range(n_rows):
        _write_squares(folded, row, out=squares)
        total += squares
    return total


def _write_squares(folded: FloatArray, row: int, out: Float32Array) -> None:
    """Write the squares of a vector in one row of the fold, (bucket,), with zeros at its end."""
    values = folded[row * len(out) : (row + 1) * len(out)]
    np.square(values, out=out[: len(values)])
    out[len(values) :] = 0


def in_intervals(
    run: Run, density: FloatArray, rows: IntArray | None = None
) -> tuple[FloatArray, IntArray]:
    """Return the energies of buckets, and for how many successive buckets each of them holds."""
    # `density` is the energy of an element of each block. If `rows` is given, only elements in
    # these rows of the fold count.
    width = run.stored.sketch.fold.width
    key = None if rows is None else rows.tobytes()
    starts, sizes, block = _cut(run.layout, width, key)
    borders = bucket_borders(starts, sizes, width)
    by_interval = bucket_densities(density[None, block], starts, sizes, width)[0]
    return by_interval, np.diff(borders, append=width)


@lru_cache(maxsize=KEPT)
def _cut(layout: Layout, width: int, rows: bytes | None) -> tuple[IntArray, ...]:
    """Return the starts, sizes and numbers of all blocks, or of their pieces in int64 `rows`."""
    starts, sizes = (
        BLOCK * np.arange(len(layout.layer_of_block)),
        layout.elements_of_block,
    )
    if rows is None:
        return starts, sizes, np.arange(len(starts))
    # Blocks are cut at the ends of rows.
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
    kept = np.isin(row, np.frombuffer(rows, np.int64))
    return start[kept], (stop - start)[kept], block[kept]
