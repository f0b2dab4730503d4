"""Loops over gradients and parameters that read everything once, compiled for CPUs.

torch would pass over the same vectors some twenty times, and a small net's step would
spend more time in starting operations than in arithmetic. Here a block of
`trajstore.layout.BLOCK` elements is read, used for all that is measured, and left. What is
computed is the same as in `trajstore.steps_torch`, up to rounding.

Numba compiles these functions when they are first imported, which takes some seconds, and
keeps the result on disk.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from numba import float32, float64, int64, prange, uint8, uint64

from trajstore import loops
from trajstore.fold import SHIFT
from trajstore.layout import BLOCK
from trajstore.loops import Floats

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# Types of arguments: places are those of `trajstore.layout.Layout`, see `measure_before`.
_PLACES: Final = (int64[::1], int64[::1], int64[::1])
_FLOATS, _ROWS = float32[::1], float32[:, ::1]


@loops.inlined
def _measure_before(
    gradient_address: int,
    parameter_address: int,
    inside: int,
    start: int,
    n: int,
    rows: Floats,
    sums: Doubles,
) -> None:
    """Measure n elements from start on, which begin so far inside their tensor."""
    n_basis, stop = rows.shape[0] - 2, start + n
    previous, displacement = rows[0, start:stop], rows[1, start:stop]
    parameter = loops.elements(parameter_address, inside, n)
    loops.subtract(parameter, rows[2, start:stop], displacement)
    if gradient_address == 0:
        sums[3 + n_basis] += loops.product(displacement, displacement)
        previous[:] = 0
    else:
        gradient = loops.elements(gradient_address, inside, n)
        sums[0] += loops.product(gradient, previous)
        previous[:] = gradient
        square, product = loops.products(gradient, displacement, gradient)
        sums[1] += square
        sums[2] += product
        sums[3 + n_basis] += loops.product(displacement, displacement)
    for i in range(n_basis):
        of_gradient, of_displacement = loops.products(
            previous, displacement, rows[2 + i, start:stop]
        )
        sums[3 + i] += of_gradient
        sums[4 + n_basis + i] += of_displacement


@loops.inlined
def _fold_block(
    start: int,
    stop: int,
    rows: Floats,
    width: int,
    columns: Floats,
    probe_columns: Floats,
    probe_signs: Floats,
    row_signs: Floats,
    weight: np.float32,
    folds: Floats,
) -> None:
    """Fold some elements of one tensor, which may lie in several rows of the fold."""
    while start < stop:
        row = start // width
        column = start - row * width
        n = min(stop - start, width - column)
        first = SHIFT * row + column
        loops.fold(
            rows[0, start : start + n],
            rows[1, start : start + n],
            columns[first : first + n],
            probe_columns[first : first + n],
            probe_signs[row],
            row_signs[row] * weight,
            folds[0, column : column + n],
            folds[1, column : column + n],
            folds[2, column : column + n],
        )
        start += n


_BEFORE: Final = (
    *(int64[::1], int64[::1], int64[::1], *_PLACES, _ROWS, float64[:, :, ::1]),
    *(int64, _FLOATS, _FLOATS, _FLOATS, _FLOATS, _FLOATS, float32[:, :, ::1]),
)
_AFTER: Final = (
    *(int64[::1], int64[::1], *_PLACES, _ROWS),
    *(float64[:, :, ::1], int64[:, ::1]),
)


@loops.compiled(*_BEFORE)
def measure_before(
    bounds: Integers,
    gradients: Integers,
    parameters: Integers,
    offsets: Integers,
    sizes: Integers,
    layer_of_block: Integers,
    rows: Floats,
    sums: Doubles,
    width: int,
    columns: Floats,
    probe_columns: Floats,
    probe_signs: Floats,
    row_signs: Floats,
    weights: Floats,
    folds: Floats,
) -> None:
    """Measure gradients and parameters, in one thread; see `measure_before_in_parts`.

    Parameters
    ----------
    bounds : numpy.ndarray
        int64, (part + 1,): blocks of the vector with which parts begin and end.
    gradients, parameters : numpy.ndarray
        int64, (layer,): addresses of the tensors' float32 elements; 0 for a gradient of
        zeros.
    offsets, sizes, layer_of_block : numpy.ndarray
        See `trajstore.layout.Layout`.
    rows : numpy.ndarray
        float32, (2 + basis, size). The first row holds the gradient before, and then the
        gradient; the second is overwritten with the displacement; then the reference and
        the other vectors of the basis.
    sums : numpy.ndarray
        float64, (part, layer, column): the columns of the table but those of the update
        are added to it.
    width : int
        Length of a row of the fold, see `trajstore.fold`; 0 not to fold.
    columns, probe_columns : numpy.ndarray
        float32: the sequences of which the column signs of the sketch and of the probes
        are parts, see `trajstore.fold.Fold.column_sequence`.
    probe_signs, row_signs : numpy.ndarray
        float32, (row,): signs of the folds of both vectors, and of the sketch's.
    weights : numpy.ndarray
        float32, (layer,): of the sketch.
    folds : numpy.ndarray
        float32, (part, 3, bucket): overwritten with folds of gradient and displacement,
        and that of the weighted gradient with the sketch's signs.
    """
    for part in range(len(bounds) - 1):
        folds[part] = 0
        for block in range(bounds[part], bounds[part + 1]):
            layer = layer_of_block[block]
            start = block * BLOCK
            inside = start - offsets[layer]
            n = min(BLOCK, sizes[layer] - inside)
            _measure_before(
                gradients[layer],
                parameters[layer],
                inside,
                start,
                n,
                rows,
                sums[part, layer],
            )
            if width > 0:
                _fold_block(
                    start,
                    start + n,
                    rows,
                    width,
                    columns,
                    probe_columns,
                    probe_signs,
                    row_signs,
                    weights[layer],
                    folds[part],
                )


@loops.compiled(*_BEFORE, in_threads=True)
def measure_before_in_parts(
    bounds: Integers,
    gradients: Integers,
    parameters: Integers,
    offsets: Integers,
    sizes: Integers,
    layer_of_block: Integers,
    rows: Floats,
    sums: Doubles,
    width: int,
    columns: Floats,
    probe_columns: Floats,
    probe_signs: Floats,
    row_signs: Floats,
    weights: Floats,
    folds: Floats,
) -> None:
    """Do what `measure_before` does, each part in a thread of its own."""
    for part in prange(len(bounds) - 1):
        measure_before(
            bounds[part : part + 2],
            gradients,
            parameters,
            offsets,
            sizes,
            layer_of_block,
            rows,
            sums[part : part + 1],
            width,
            columns,
            probe_columns,
            probe_signs,
            row_signs,
            weights,
            folds[part : part + 1],
        )


@loops.compiled(*_AFTER)
def measure_after(
    bounds: Integers,
    parameters: Integers,
    offsets: Integers,
    sizes: Integers,
    layer_of_block: Integers,
    rows: Floats,
    sums: Doubles,
    checks: Integers,
) -> None:
    """Measure what a step changed in the parameters, in one thread.

    Parameters
    ----------
    bounds, parameters, offsets, sizes, layer_of_block, rows
        As for `measure_before`, which has filled the row of displacements.
    sums : numpy.ndarray
        float64, (part, layer, 2): |u|^2 and <u, displacement> are added to it.
    checks : numpy.ndarray
        int64, (part, layer): a sum of the bits of the parameters is added to it.
    """
    update = np.empty(BLOCK, np.float32)
    for part in range(len(bounds) - 1):
        for block in range(bounds[part], bounds[part + 1]):
            layer = layer_of_block[block]
            start = block * BLOCK
            inside = start - offsets[layer]
            n = min(BLOCK, sizes[layer] - inside)
            parameter = loops.elements(parameters[layer], inside, n)
            displacement = rows[1, start : start + n]
            # Near the reference x - r is exact, and so is the difference of two of them.
            loops.subtract(parameter, rows[2, start : start + n], update)
            loops.subtract(update[:n], displacement, update)
            square, product = loops.products(update, displacement, update[:n])
            sums[part, layer, 0] += square
            sums[part, layer, 1] += product
            checks[part, layer] += loops.sum_of_bits(parameter.view(np.int32))


@loops.compiled(*_AFTER, in_threads=True)
def measure_after_in_parts(
    bounds: Integers,
    parameters: Integers,
    offsets: Integers,
    sizes: Integers,
    layer_of_block: Integers,
    rows: Floats,
    sums: Doubles,
    checks: Integers,
) -> None:
    """Do what `measure_after` does, each part in a thread of its own."""
    for part in prange(len(bounds) - 1):
        measure_after(
            bounds[part : part + 2],
            parameters,
            offsets,
            sizes,
            layer_of_block,
            rows,
            sums[part : part + 1],
            checks[part : part + 1],
        )


@loops.compiled(int64[::1], *_PLACES, _ROWS)
def subtract_reference(
    parameters: Integers,
    offsets: Integers,
    sizes: Integers,
    layer_of_block: Integers,
    rows: Floats,
) -> None:
    """Fill the row of displacements; arguments as for `measure_before`."""
    for block in range(len(layer_of_block)):
        layer = layer_of_block[block]
        start = block * BLOCK
        inside = start - offsets[layer]
        n = min(BLOCK, sizes[layer] - inside)
        loops.subtract(
            loops.elements(parameters[layer], inside, n),
            rows[2, start : start + n],
            rows[1, start : start + n],
        )


@loops.compiled(_FLOATS, int64, _FLOATS, _FLOATS, _FLOATS)
def fold(
    vector: Floats,
    width: int,
    columns: Floats,
    row_signs: Floats,
    out: Floats,
) -> None:
    """Fold one vector, see `trajstore.fold`; `out` is added to.

    Parameters
    ----------
    vector : numpy.ndarray
        float32, (size,).
    width : int
        Length of a row.
    columns, row_signs : numpy.ndarray
        As for `measure_before`.
    out : numpy.ndarray
        float32, (bucket,).
    """
    for row in range(len(row_signs)):
        part = vector[row * width : (row + 1) * width]
        signs = columns[SHIFT * row :]
        loops.fold_one(part, signs, row_signs[row], out)


@loops.compiled(uint64, uint64, uint64, _FLOATS)
def draw_signs(seed: int, role: int, step: int, signs: Floats) -> None:
    """Draw the `trajstore.signs.random_signs` of a step.

    Parameters
    ----------
    seed, role, step : int
        See `trajstore.signs.random_signs`.
    signs : numpy.ndarray
        float32, a multiple of 64 long; overwritten.
    """
    words = np.empty(4, np.uint64)
    for i in range(0, len(signs), 256):
        loops.philox(np.uint64(i // 256 + 1), step, seed, role, words)
        for k in range(min(4, (len(signs) - i) // 64)):
            loops.unpack(words[k], signs[i + 64 * k : i + 64 * k + 64])


@loops.compiled(float32[:, :, ::1], int64, _ROWS, _ROWS)
def probe(folds: Floats, width: int, signs: Floats, out: Floats) -> None:
    """Fold first folds again, see `trajstore.probes`.

    Parameters
    ----------
    folds : numpy.ndarray
        float32, (part, at least vector, bucket); parts are added up.
    width : int
        Length of a row of the first fold.
    signs : numpy.ndarray
        float32, (row, probe): the fixed signs of the second fold.
    out : numpy.ndarray
        float32, (vector, at least probe); overwritten.
    """
    n_rows, length = signs.shape
    out[:] = 0
    for part in range(len(folds)):
        for vector in range(len(out)):
            for row in range(n_rows):
                start = row * length
                n = min(length, width - start)
                loops.add_signed(
                    folds[part, vector, start : start + n],
                    signs[row, :n],
                    out[vector, :n],
                )


@loops.compiled(float32[:, :, ::1], _FLOATS, int64, uint8[::1], _FLOATS)
def sketch(
    folds: Floats,
    signs: Floats,
    block: int,
    code: npt.NDArray[np.uint8],
    scales: Floats,
) -> None:
    """Rotate a fold and keep its signs, see `trajstore.rotation` and `trajstore.onebit`.

    Parameters
    ----------
    folds : numpy.ndarray
        float32, (part, fold, bits): the last folds of all parts are sketched; that of the
        first part is overwritten.
    signs : numpy.ndarray
        float32, (bits,): random signs of the rotation.
    block : int
        Length of a Hadamard block.
    code : numpy.ndarray
        uint8, (bits / 8,); overwritten.
    scales : numpy.ndarray
        float32, (block,); overwritten.
    """
    buckets = folds[0, -1]
    for part in range(1, len(folds)):
        buckets += folds[part, -1]
    half = len(buckets) // 2
    scale = np.float32(1 / np.sqrt(block))
    loops.multiply(buckets, signs, scale)
    for start in range(0, len(buckets), block):
        loops.hadamard(buckets[start : start + block])
    loops.multiply(buckets[:half], signs[half:], scale)
    loops.multiply(buckets[half:], signs[:half], scale)
    for i in range(len(scales)):
        part = buckets[i * block : (i + 1) * block]
        loops.hadamard(part)
        energy, magnitude = loops.norms(part)
        scales[i] = energy / magnitude if magnitude != 0 else 0
    loops.pack(buckets, code)
