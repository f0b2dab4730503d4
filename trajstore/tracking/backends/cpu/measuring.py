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
    LEAST_CAREFREE,
    LEAST_SQUARE,
    MOST_CAREFREE,
    add_decoded,
    fold_both,
    fold_vector,
    in_range,
    measure_vectors,
    products,
    subtract,
    sum_of_bits,
    update_products,
)
from trajstore.tracking.backends.cpu.compiling import compiled_for_parts, inlined
from trajstore.tracking.backends.cpu.ranges import (
    INDEX,
    LAYER,
    LENGTH,
    N_FACTS,
    PLACE,
    START,
    TENSOR,
)
from trajstore.tracking.backends.cpu.views import (
    add_to,
    address_of,
    at,
    codes_at,
    erase,
    floats_at,
    part_of,
    quotient,
    smaller,
    words_at,
)

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Signs = npt.NDArray[np.int8]


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

BLOCK_BITS: Final = BLOCK.bit_length() - 1
"""Shifting an index by that many bits divides it by `BLOCK`."""

_FLOATS, _ROWS, _INTEGERS = float32[::1], float32[:, ::1], int64[::1]
_SIGNS: Final = int8[::1]
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
    # (part, layer, column): overwritten with the products; other columns are set to 0
    "sums": _SUMS,
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
    # (product,): columns of `UPDATES` in `update_sums`, which are neighbours
    "update_columns": _INTEGERS,
    # (layer,), or empty: this column of the `update_sums` of the only part is added to it
    "energy": float64[::1],
    "energy_column": int64,
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


def held_squares(gradient: Floats, ranges: Integers) -> Floats:
    """Return |g|^2 of every range's block, NaN where `measure_before` would use float64."""
    squares = np.empty(len(gradient) // BLOCK)
    for i, block in enumerate(gradient.reshape(-1, BLOCK)):
        wide = block.astype(np.float64)
        squares[i] = wide @ wide
    is_held = (squares == 0) | ((squares > LEAST_CAREFREE) & (squares < MOST_CAREFREE))
    held = np.where(is_held, squares, np.nan).astype(np.float32)
    return np.asarray(held[ranges[:, START] // BLOCK])


@inlined
def erase_results(
    part: int,
    filled: int,
    sums: Doubles,
    update_sums: Doubles,
    update_columns: Integers,
    folds: Floats,
) -> None:
    """Set the sums and folds of a part to 0."""
    n_sums = sums.shape[1] * sums.shape[2]
    erase(sums, part * n_sums, n_sums)
    for layer in range(update_sums.shape[1]):
        place = (part * update_sums.shape[1] + layer) * update_sums.shape[2]
        erase(update_sums, place + at(update_columns, 0), 2)
    buckets = folds.shape[2]
    erase(folds, 3 * part * buckets, filled)
    erase(folds, (3 * part + 1) * buckets, filled)
    # The third fold is rotated later, which fills all its buckets, so clear all of them.
    erase(folds, (3 * part + 2) * buckets, buckets)


@inlined
def add_energy(energy: Doubles, energy_column: int, update_sums: Doubles) -> None:
    """Add |g|^2 of the last step to the energy, as resuming finds it in the store."""
    for layer in range(len(energy)):
        square = at(update_sums, layer * update_sums.shape[2] + energy_column)
        add_to(energy, layer, np.float64(np.float32(square)))


@inlined
def measure_range(
    part: int,
    i: int,  # index of the range
    block: Integers,  # facts of the range
    parameter: Floats,
    anchor: Floats,
    gradient: Floats,  # the last gradient, replaced by the gradient
    factor: np.float64,  # of products with the last gradient
    displacement: Floats,  # overwritten
    # As in `BEFORE`.
    gradients: Integers,
    past: Integers,
    sums: Doubles,
    columns: Integers,
    basis_columns: Integers,
    width: int,
    sketch_columns: Signs,
    probe_columns: Signs,
    probe_signs: Floats,
    row_signs: Signs,
    weights: Floats,
    folds: Floats,
    window_signs: Floats,
    window_folds: Floats,
    energies: Floats,
    squares: Floats,
    buffers: Floats,
) -> None:
    """Measure gradient and parameters in one range."""
    layer, tensor = at(block, LAYER), at(block, TENSOR)
    start, n = at(block, START), at(block, LENGTH)
    buckets, n_window_folds = folds.shape[2], window_folds.shape[1]
    n_codes, n_basis, n_columns = past.shape[1], basis_columns.shape[1], sums.shape[2]
    n_sums = sums.shape[1] * n_columns
    vector = part_of(buffers, part * BLOCK, n)

    # Read the gradient, and compute the products of the vectors with each other.
    address = at(gradients, tensor)
    has_gradient = address != 0
    if has_gradient:
        address += 4 * at(block, INDEX)
    else:
        erase(vector, 0, n)
        address = address_of(vector)
    new, last_square = floats_at(address, n), at(squares, i)
    is_plain = last_square == 0 or LEAST_CAREFREE < last_square < MOST_CAREFREE
    square = exact = np.float64(0)
    if not is_plain:
        # The next loop replaces the last gradient.
        exact = in_range(np.float32(np.nan), new, gradient)
    g_previous, g_g, g_a, first, a_a, second = measure_vectors(
        parameter, anchor, new, gradient, displacement
    )
    place = part * n_sums + layer * n_columns
    if has_gradient:
        square = in_range(g_g, gradient, gradient)
        if is_plain:
            # After such a jump of the gradient, the product has lost its digits.
            is_lost = 0 < square * last_square < LEAST_SQUARE
            exact = np.float64(np.nan) if is_lost else np.float64(g_previous)
        add_to(sums, place + at(columns, 0), factor * exact)
        add_to(sums, place + at(columns, 1), square)
        add_to(sums, place + at(columns, 2), in_range(g_a, gradient, displacement))
    add_to(sums, place + at(columns, 3), in_range(a_a, displacement, displacement))
    add_to(energies, start >> BLOCK_BITS, np.float32(square))
    is_held = square == 0 or LEAST_CAREFREE < square < MOST_CAREFREE
    squares[i] = np.float32(square) if is_held else np.float32(np.nan)

    # Compute the products with the basis, whose first vector is the anchor.
    other = anchor
    for k in range(n_basis):
        if k == 1:
            if n_codes == 0:
                # In the first window all displacements from earlier anchors are 0.
                break
            erase(vector, 0, n)
            other = vector
        if k > 0:
            # The anchor minus an earlier anchor is the sum of the codes between them.
            for c in range((1 << k) >> 2, smaller((1 << k) >> 1, n_codes)):
                scale = at(floats_at(at(past, n_codes + c), n), start >> BLOCK_BITS)
                add_decoded(codes_at(at(past, c) + start, n), scale, vector)
            first, second = products(gradient, displacement, vector)
        of_gradient = in_range(first, gradient, other)
        of_displacement = in_range(second, displacement, other)
        add_to(sums, place + at(basis_columns, k), of_gradient)
        add_to(sums, place + at(basis_columns, n_basis + k), of_displacement)

    # Fold the elements, which may be in several rows of the fold.
    if width == 0:
        return
    weight, folded, stop = at(weights, layer), at(block, PLACE), start + n
    first_element = start
    while start < stop:
        row = quotient(folded, width)
        column = folded - row * width
        n = smaller(stop - start, width - column)
        first_sign, bucket = SHIFT * row + column, 3 * part * buckets + column
        part_of_gradient = part_of(gradient, start - first_element, n)
        signs = part_of(sketch_columns, first_sign, n)
        weighted = part_of(folds, bucket + 2 * buckets, n)
        row_sign = np.float32(at(row_signs, row))
        fold_vector(part_of_gradient, signs, row_sign * weight, weighted)
        fold_both(
            part_of_gradient,
            part_of(displacement, start - first_element, n),
            part_of(probe_columns, first_sign, n),
            at(probe_signs, row),
            part_of(folds, bucket, n),
            part_of(folds, bucket + buckets, n),
        )
        if n_window_folds > 0:
            k = row - n_window_folds * quotient(row, n_window_folds)
            k += part * n_window_folds
            total = part_of(window_folds, k * window_folds.shape[2] + column, n)
            fold_vector(part_of_gradient, signs, at(window_signs, row) * weight, total)
        start += n
        folded += n


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
        energy,
        energy_column,
        buffers,
    ) = _before_at(arguments)
    size, n_update_columns = rows.shape[1], update_sums.shape[2]
    n_update_sums = update_sums.shape[1] * n_update_columns
    erase_results(part, filled, sums, update_sums, update_columns, folds)
    for i in range(at(bounds, part), at(bounds, part + 1)):
        block = part_of(ranges, N_FACTS * i, N_FACTS)
        start, n = at(block, START), at(block, LENGTH)
        gradient = part_of(rows, start, n)
        displacement = part_of(rows, size + start, n)
        anchor = part_of(rows, 2 * size + start, n)
        address = at(parameters, at(block, TENSOR)) + 4 * at(block, INDEX)
        parameter = floats_at(address, n)
        if n_update_sums > 0:
            u_u, u_a = update_products(parameter, anchor, displacement)
            place = part * n_update_sums + at(block, LAYER) * n_update_columns
            add_to(update_sums, place + at(update_columns, 0), u_u)
            add_to(update_sums, place + at(update_columns, 1), u_a)
        measure_range(
            part,
            i,
            block,
            parameter,
            anchor,
            gradient,
            np.float64(1),
            displacement,
            gradients,
            past,
            sums,
            columns,
            basis_columns,
            width,
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
            buffers,
        )
    add_energy(energy, energy_column, update_sums)


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
    size, n_columns = rows.shape[1], sums.shape[2]
    n_layers = sums.shape[1]
    for i in range(at(bounds, part), at(bounds, part + 1)):
        block = part_of(ranges, N_FACTS * i, N_FACTS)
        start, n = at(block, START), at(block, LENGTH)
        address = at(parameters, at(block, TENSOR)) + 4 * at(block, INDEX)
        parameter, anchor = floats_at(address, n), part_of(rows, 2 * size + start, n)
        displacement = part_of(rows, size + start, n)
        if n_layers == 0:
            subtract(parameter, anchor, displacement)
            continue
        u_u, u_a = update_products(parameter, anchor, displacement)
        layer = part * n_layers + at(block, LAYER)
        add_to(sums, layer * n_columns + at(columns, 0), u_u)
        add_to(sums, layer * n_columns + at(columns, 1), u_a)
        checks[part, at(block, LAYER)] += sum_of_bits(
            words_at(address, n), at(block, INDEX)
        )


@np.errstate(over="ignore", invalid="ignore")
def add_up(
    sums: Doubles, first: int, table: Doubles, grad_sq: int, energy: Doubles
) -> None:
    """Add up the parts of `sums`, (part, layer, column), into columns of a table."""
    # The first column is `first`. Also adds the column `grad_sq` to `energy`, (layer,) or empty.
    columns = slice(first, first + sums.shape[2])
    table[:, columns] = sums[0] if len(sums) == 1 else sums.sum(0)
    if len(energy) > 0:
        # As resuming finds it in the store.
        energy += table[:, grad_sq].astype(np.float32)
