"""Compiled loops for CPUs that read gradients and parameters only once.

Plain torch operations would read the same vectors about twenty times. For a small net, starting
these operations would also take longer than the arithmetic. The loops in this module read a block
of `trajstore.format.layout.BLOCK` elements once, and use it for all products and folds. The
results equal the results of `eager` up to rounding.

`block_loops` has the loops over the elements of a block.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from numba import float32, float64, int8, int64

from trajstore.format.layout import BLOCK
from trajstore.sketch.fold import SHIFT
from trajstore.tracking.backends.cpu.arguments import arguments_at
from trajstore.tracking.backends.cpu.block_loops import (
    LEAST_SQUARE,
    Signs,
    add_decoded,
    clear,
    fold_both,
    fold_vector,
    in_range,
    measure_vectors,
    products,
    subtract,
    sum_of_bits,
    update_products,
)
from trajstore.tracking.backends.cpu.compiling import (
    compiled,
    compiled_for_parts,
    inlined,
)
from trajstore.tracking.backends.cpu.ranges import (
    INDEX,
    LAYER,
    LENGTH,
    PLACE,
    START,
    TENSOR,
)
from trajstore.tracking.backends.cpu.views import (
    codes_at,
    floats_at,
    part_of,
    smaller,
    words_at,
)

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


# `measure_before` and `measure_after` receive the columns of the sums in the order of these names;
# see `trajstore.format.arrays.table_columns`.
PRODUCTS: Final = (
    "grad_dot_previous",
    "grad_sq",
    "grad_dot_displacement",
    "displacement_sq",
)
BASIS_PRODUCTS: Final = ("grad_dot_basis", "displacement_dot_basis")
UPDATES: Final = ("update_sq", "update_dot_displacement")

CAREFUL: Final = 1e-20, 1e30
"""Range of |g|^2 in a block whose products with the next gradient are computed in float32."""

_FLOATS, _ROWS, _INTEGERS = float32[::1], float32[:, ::1], int64[::1]
_SIGNS: Final = int8[::1]
_TABLE: Final = float64[:, ::1]
_SUMS, _FOLDS = float64[:, :, ::1], float32[:, :, ::1]
_RANGES: Final = int64[:, ::1]

BEFORE: Final = {
    # (part + 1,): first range of each part, and the number of ranges
    "bounds": _INTEGERS,
    # (tensor,): addresses of float32 tensors; 0 stands for zeros
    "gradients": _INTEGERS,
    "parameters": _INTEGERS,  # (tensor,): addresses of float32 tensors
    "ranges": _RANGES,  # (range, 6): see `trajstore.tracking.backends.cpu.ranges`
    # (3, size): the last gradient, replaced by the gradient; the displacement, overwritten; the
    # anchor, only read.
    "rows": _ROWS,
    "past": int64[
        :, ::1
    ],  # (2, code): addresses of codes and scales, see `past_anchors`
    "sums": _SUMS,  # (part, layer, column): overwritten with the products
    "columns": _INTEGERS,  # (product,): columns of `PRODUCTS` in `sums`
    # (2, basis): columns of `BASIS_PRODUCTS` in `sums`
    "basis_columns": int64[:, ::1],
    "width": int64,  # length of a row of the fold; 0 if nothing is folded
    "filled": int64,  # number of buckets that may differ from 0
    "sketch_columns": _SIGNS,  # (sign,): `Fold.column_sequence` of the sketch
    "probe_columns": _SIGNS,  # (sign,): `Fold.column_sequence` of the probes
    "probe_signs": _FLOATS,  # (row,): row signs of the probes
    "row_signs": _SIGNS,  # (row,): row signs of the sketch
    "weights": _FLOATS,  # (layer,): weights of the sketch
    # (part, 3, bucket): overwritten with folds of the gradient and the displacement for the
    # probes, and of the weighted gradient for the sketch.
    "folds": _FOLDS,
    "window_signs": _FLOATS,  # (row,): row signs of the window's sum
    # (part, fold, bucket): the weighted gradient is added to it; the rows are dealt to the folds
    "window_folds": _FOLDS,
    "energies": _FLOATS,  # (block,): |g|^2 of every block is added to it
    # (range,): |g|^2 of every range in the last step, NaN where float32 cannot hold it; overwritten
    "squares": _FLOATS,
    # (part, layer, column): overwritten with products of the last step's update, which leads to
    # the parameters; not measured if there are no layers
    "update_sums": _SUMS,
    "update_columns": _INTEGERS,  # (product,): columns of `UPDATES` in `update_sums`
    "buffers": _ROWS,  # (part, `BLOCK`): memory for one block; overwritten
}
"""Arguments of `measure_before`, and their types."""

AFTER: Final = {
    # Arguments without a comment are as in `BEFORE`.
    "bounds": _INTEGERS,
    "parameters": _INTEGERS,
    "ranges": _RANGES,
    "rows": _ROWS,
    # (part, layer, column): products of the update are added to it; without layers, nothing is
    # measured, and the displacement is computed
    "sums": _SUMS,
    "columns": _INTEGERS,  # (product,): columns of `UPDATES` in `sums`
    "checks": int64[
        :, ::1
    ],  # (part, layer): checksums of the parameters are added to it
}
"""Arguments of `measure_after`, and their types."""

_before_at, _after_at = arguments_at(*BEFORE.values()), arguments_at(*AFTER.values())


@inlined
def _measure_block(
    gradient_address: int,
    parameter_address: int,
    start: int,
    n: int,
    rows: Floats,
    past: Integers,
    vector: Floats,
    sums: Doubles,
    columns: Integers,
    basis_columns: Integers,
    update_sums: Doubles,
    update_columns: Integers,
    part: int,
    layer: int,
    last_square: np.float32,
) -> np.float64:
    """Measure the n elements at two addresses, from element `start` of the flat vector."""
    # Returns |g|^2 of the gradient.
    square, size = np.float64(0), rows.shape[1]
    gradient = part_of(rows, start, n)
    displacement = part_of(rows, size + start, n)
    anchor = part_of(rows, 2 * size + start, n)
    parameter = floats_at(parameter_address, n)
    if update_sums.shape[1] > 0:
        u_u, u_a = update_products(parameter, anchor, displacement)
        update_sums[part, layer, update_columns[0]] += u_u
        update_sums[part, layer, update_columns[1]] += u_a
    if gradient_address == 0:
        clear(gradient)
        subtract(parameter, anchor, displacement)
        gradient_product = np.float32(0)
        a_a, displacement_product = products(displacement, anchor, displacement)
    else:
        new = floats_at(gradient_address, n)
        is_plain = last_square == 0 or CAREFUL[0] < last_square < CAREFUL[1]
        exact = np.float64(0)
        if not is_plain:
            # The next loop replaces the last gradient.
            exact = in_range(np.float32(np.nan), new, gradient)
        g_previous, g_g, g_a, gradient_product, a_a, displacement_product = (
            measure_vectors(parameter, anchor, new, gradient, displacement)
        )
        square = in_range(g_g, gradient, gradient)
        if is_plain:
            # After such a jump of the gradient, the product has lost its digits.
            is_lost = 0 < square * last_square < LEAST_SQUARE
            exact = np.float64(np.nan) if is_lost else np.float64(g_previous)
        sums[part, layer, columns[0]] += exact
        sums[part, layer, columns[1]] += square
        sums[part, layer, columns[2]] += in_range(g_a, gradient, displacement)
    sums[part, layer, columns[3]] += in_range(a_a, displacement, displacement)
    n_codes, other = past.shape[1], anchor
    for i in range(basis_columns.shape[1]):
        if i == 1:
            if n_codes == 0:
                # In the first window all displacements from earlier anchors are 0.
                break
            clear(vector)
            other = vector
        if i > 0:
            # The anchor minus an earlier anchor is the sum of the codes between them.
            for k in range((1 << i) >> 2, smaller((1 << i) >> 1, n_codes)):
                scale = floats_at(past[1, k] + 4 * (start // BLOCK), 1)[0]
                add_decoded(codes_at(past[0, k] + start, n), scale, vector)
            gradient_product, displacement_product = products(
                gradient, displacement, vector
            )
        first = in_range(gradient_product, gradient, other)
        second = in_range(displacement_product, displacement, other)
        sums[part, layer, basis_columns[0, i]] += first
        sums[part, layer, basis_columns[1, i]] += second
    return square


def held_squares(gradient: Floats) -> Floats:
    """Return |g|^2 of every block, NaN where `measure_before` would compute it in float64."""
    squares = np.empty(len(gradient) // BLOCK)
    for i, block in enumerate(gradient.reshape(-1, BLOCK)):
        wide = block.astype(np.float64)
        squares[i] = wide @ wide
    is_held = (squares == 0) | ((squares > CAREFUL[0]) & (squares < CAREFUL[1]))
    return np.where(is_held, squares, np.nan).astype(np.float32)


@inlined
def _fold_block(
    start: int,
    place: int,
    n_elements: int,
    rows: Floats,
    width: int,
    sketch_columns: Signs,
    probe_columns: Signs,
    probe_signs: Floats,
    row_signs: Signs,
    weight: np.float32,
    folds: Floats,
    window_signs: Floats,
    window_folds: Floats,
    part: int,
) -> None:
    """Fold neighbouring elements of a tensor, which may be in several rows of the fold."""
    # Element `start` of the flat vector has the place `place` in the vector that is folded.
    stop, size = start + n_elements, rows.shape[1]
    buckets, n_window_folds = folds.shape[2], window_folds.shape[1]
    while start < stop:
        row = place // width
        column = place - row * width
        n = smaller(stop - start, width - column)
        first, bucket = SHIFT * row + column, 3 * part * buckets + column
        gradient = part_of(rows, start, n)
        signs = part_of(sketch_columns, first, n)
        weighted = part_of(folds, bucket + 2 * buckets, n)
        fold_vector(gradient, signs, np.float32(row_signs[row]) * weight, weighted)
        fold_both(
            gradient,
            part_of(rows, size + start, n),
            part_of(probe_columns, first, n),
            probe_signs[row],
            part_of(folds, bucket, n),
            part_of(folds, bucket + buckets, n),
        )
        if n_window_folds > 0:
            i = part * n_window_folds + row % n_window_folds
            total = part_of(window_folds, i * window_folds.shape[2] + column, n)
            fold_vector(gradient, signs, window_signs[row] * weight, total)
        start += n
        place += n


@compiled_for_parts
def measure_before(part: int, arguments: int) -> None:
    """Measure gradients and parameters, and the last update, in the ranges of one part."""
    # `arguments` is the address of the arguments `BEFORE`.
    (
        bounds,
        gradients,
        parameters,
        ranges,
        rows,
        past,
        sums,
        columns,
        basis_columns,
        width,
        filled,
        sketch_columns,
        probe_columns,
        probe_signs,
        row_signs,
        weights,
        folds,
        window_signs,
        window_folds,
        energies,
        squares,
        update_sums,
        update_columns,
        buffers,
    ) = _before_at(arguments)
    buckets = folds.shape[2]
    for layer in range(sums.shape[1]):
        for column in range(sums.shape[2]):
            sums[part, layer, column] = 0
    for layer in range(update_sums.shape[1]):
        for column in range(update_sums.shape[2]):
            update_sums[part, layer, column] = 0
    clear(part_of(folds, 3 * part * buckets, filled))
    clear(part_of(folds, (3 * part + 1) * buckets, filled))
    # The third fold is rotated later, which fills all its buckets, so clear all of them.
    clear(part_of(folds, (3 * part + 2) * buckets, buckets))
    for i in range(bounds[part], bounds[part + 1]):
        layer, tensor = ranges[i, LAYER], ranges[i, TENSOR]
        start, n = ranges[i, START], ranges[i, LENGTH]
        gradient = gradients[tensor]
        if gradient != 0:
            gradient += 4 * ranges[i, INDEX]
        square = _measure_block(
            gradient,
            parameters[tensor] + 4 * ranges[i, INDEX],
            start,
            n,
            rows,
            past,
            part_of(buffers, part * BLOCK, n),
            sums,
            columns,
            basis_columns,
            update_sums,
            update_columns,
            part,
            layer,
            squares[i],
        )
        energies[start // BLOCK] += np.float32(square)
        is_held = square == 0 or CAREFUL[0] < square < CAREFUL[1]
        squares[i] = np.float32(square) if is_held else np.float32(np.nan)
        if width > 0:
            _fold_block(
                start,
                ranges[i, PLACE],
                n,
                rows,
                width,
                sketch_columns,
                probe_columns,
                probe_signs,
                row_signs,
                weights[layer],
                folds,
                window_signs,
                window_folds,
                part,
            )


@compiled_for_parts
def measure_after(part: int, arguments: int) -> None:
    """Measure the update in the ranges of one part, or compute the displacement there."""
    # `arguments` is the address of the arguments `AFTER`.
    (
        bounds,
        parameters,
        ranges,
        rows,
        sums,
        columns,
        checks,
    ) = _after_at(arguments)
    size = rows.shape[1]
    for i in range(bounds[part], bounds[part + 1]):
        layer, index = ranges[i, LAYER], ranges[i, INDEX]
        start, n = ranges[i, START], ranges[i, LENGTH]
        address = parameters[ranges[i, TENSOR]] + 4 * index
        parameter, anchor = floats_at(address, n), part_of(rows, 2 * size + start, n)
        displacement = part_of(rows, size + start, n)
        if sums.shape[1] == 0:
            subtract(parameter, anchor, displacement)
            continue
        u_u, u_a = update_products(parameter, anchor, displacement)
        sums[part, layer, columns[0]] += u_u
        sums[part, layer, columns[1]] += u_a
        checks[part, layer] += sum_of_bits(words_at(address, n), index)


@compiled(_SUMS, int64, _TABLE, int64, float64[::1])
def add_up(
    sums: Doubles, first: int, table: Doubles, grad_sq: int, energy: Doubles
) -> None:
    """Add up the parts of `sums`, (part, layer, column), into columns of a table."""
    # The first column is `first`. Also adds the column `grad_sq` to `energy`, (layer,) or empty.
    n_parts, n_layers, n_columns = sums.shape
    for layer in range(n_layers):
        for column in range(n_columns):
            total = sums[0, layer, column]
            for part in range(1, n_parts):
                total += sums[part, layer, column]
            table[layer, first + column] = total
    for layer in range(len(energy)):
        # As resuming finds it in the store.
        energy[layer] += np.float32(table[layer, grad_sq])
