"""Compiled loops for CPUs that read gradients and parameters only once.

Plain torch operations would read the same vectors about twenty times. For a small net, starting
these operations would also take longer than the arithmetic. The loops in this module read a block
of `trajstore.format.layout.BLOCK` elements once, and use it for all products and folds. The
results equal the results of `eager` up to rounding.

The first half of the file consists of short loops over few arrays: the compiler can rule out that
so few arrays overlap, and vectorises the loops.
"""

from collections.abc import Callable
from typing import Any, Final, cast

import numba
import numpy as np
import numpy.typing as npt
from numba import float32, float64, int8, int64, prange, types
from numba.extending import intrinsic

from trajstore.format.layout import BLOCK
from trajstore.sketch.fold import SHIFT
from trajstore.tracking.backends.compiling import (
    compiled,
    compiled_in_threads,
    inlined,
    loop,
)
from trajstore.tracking.backends.memory import PAGE

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def _pointer_to(element_type: Any) -> Callable[..., Any]:
    """Return a function that turns an integer into a pointer to a number of this type."""
    pointer = types.CPointer(element_type)

    def infer_type(_context: Any, address: Any) -> Any:
        return pointer(address), generate_code

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return cast("Callable[..., Any]", intrinsic(infer_type))


_float32_at: Final = _pointer_to(float32)
_int8_at: Final = _pointer_to(int8)


@inlined
def _elements(address: int, first: int, n: int) -> Floats:
    """Return n elements of the tensor at an address, starting with the element `first`."""
    whole: Floats = numba.carray(_float32_at(address), (first + n,))
    return whole[first:]


@inlined
def _codes(address: int, first: int, n: int) -> npt.NDArray[np.int8]:
    """Return n of the codes at an address, starting with the code `first`."""
    whole: npt.NDArray[np.int8] = numba.carray(_int8_at(address), (first + n,))
    return whole[first:]


@loop
def _subtract(a: Floats, b: Floats, out: Floats) -> None:
    """Set `out` to a - b."""
    for i in range(len(a)):
        out[i] = a[i] - b[i]


@loop
def _products(a: Floats, b: Floats, c: Floats) -> tuple[np.float32, np.float32]:
    """Return <a, c> and <b, c>."""
    first = second = np.float32(0)
    for i in range(len(c)):
        first += a[i] * c[i]
        second += b[i] * c[i]
    return first, second


def _subtraction(_context: Any, _a: Any, _b: Any) -> Any:
    """Return a - b; the compiler does not reorder this operation."""

    def generate_code(
        _context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        # Numba adds flags that permit reordering to operations without flags only.
        return builder.fsub(*arguments, flags=("nsz",))

    return float32(float32, float32), generate_code


_difference: Final = intrinsic(_subtraction)


@loop
def _measure_update(
    parameter: Floats, anchor: Floats, displacement: Floats
) -> tuple[np.float32, np.float32]:
    """Return <u, u> and <u, a> of the update u since the displacement was a."""
    square = product = np.float32(0)
    for i in range(len(parameter)):
        # Near the anchor r, x - r is exact, and so is the difference of two displacements.
        u = _difference(_difference(parameter[i], anchor[i]), displacement[i])
        square += u * u
        product += u * displacement[i]
    return square, product


@loop
def _measure_update_in_doubles(
    parameter: Floats, anchor: Floats, displacement: Floats
) -> tuple[np.float64, np.float64]:
    """Return the same, in float64."""
    square = product = np.float64(0)
    for i in range(len(parameter)):
        a = displacement[i]
        u = np.float64(_difference(_difference(parameter[i], anchor[i]), a))
        square += u * u
        product += u * np.float64(a)
    return square, product


@loop
def _measure_vectors(
    parameter: Floats,
    anchor: Floats,
    gradient: Floats,
    previous: Floats,
    displacement: Floats,
) -> tuple[np.float32, np.float32, np.float32, np.float32, np.float32, np.float32]:
    """Set `displacement`, replace the previous gradient, and return their inner products."""
    # The products: the gradient with the previous one, itself, the displacement and the anchor;
    # the displacement with itself and the anchor.
    g_previous = g_g = g_a = g_r = a_a = a_r = np.float32(0)
    for i in range(len(parameter)):
        g, r = gradient[i], anchor[i]
        a = parameter[i] - r
        g_previous += g * previous[i]
        g_g += g * g
        g_a += g * a
        g_r += g * r
        a_a += a * a
        a_r += a * r
        displacement[i] = a
        previous[i] = g
    return g_previous, g_g, g_a, g_r, a_a, a_r


@loop
def _magnitude(a: Floats) -> np.float32:
    """Return the sum of the absolute values of a."""
    # The compiler would not vectorise a maximum.
    magnitude = np.float32(0)
    for i in range(len(a)):
        magnitude += abs(a[i])
    return magnitude


@loop
def _product_in_doubles(a: Floats, b: Floats) -> np.float64:
    """Return <a, b>, computed in float64."""
    total = np.float64(0)
    for i in range(len(b)):
        total += np.float64(a[i]) * np.float64(b[i])
    return total


@inlined
def _is_held(product: np.float32) -> bool:
    """Whether float32 certainly holds all digits of a product of two vectors."""
    return bool(LEAST_SUM < abs(product) < np.inf)


@loop
def _in_range(product: np.float32, a: Floats, b: Floats) -> np.float64:
    """Return <a, b>, which is `product` unless that has left the range of float32."""
    if abs(product) <= LEAST_SUM:
        # A product that is 0 is right if one of the vectors is 0, or if they do not meet.
        bound = np.float64(_magnitude(a))
        if bound > 0:
            bound *= np.float64(_magnitude(b))
        if bound == 0 or bound > LEAST_MAGNITUDES:
            return np.float64(product)
    return _product_in_doubles(a, b)


@loop
def _add_decoded(
    codes: npt.NDArray[np.int8], scale: np.float32, vector: Floats
) -> None:
    """Decode the codes of one block, as `trajstore.sketch.deltas` does, and add the result."""
    for i in range(len(codes)):
        vector[i] += np.float32(codes[i]) * scale


@loop
def _sum_of_bits(words: npt.NDArray[np.int32], place: int) -> np.int64:
    """Return a checksum that depends on the words and on their places in a tensor."""
    total = np.int64(0)
    for i in range(len(words)):
        total += np.int64(words[i]) * (2 * (place + i) + 1)
    return total


@loop
def _fold(vector: Floats, signs: Floats, sign: np.float32, out: Floats) -> None:
    """Add a vector times column signs and a row sign to a fold."""
    for i in range(len(signs)):
        out[i] += sign * signs[i] * vector[i]


@loop
def _fold_both(
    gradient: Floats,
    displacement: Floats,
    signs: Floats,
    row_sign: np.float32,
    gradient_fold: Floats,
    displacement_fold: Floats,
) -> None:
    """Do the same for two vectors and their folds, with the same signs."""
    for i in range(len(signs)):
        sign = row_sign * signs[i]
        gradient_fold[i] += sign * gradient[i]
        displacement_fold[i] += sign * displacement[i]


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

LEAST_SUM: Final = 1e-35
"""A sum of products in float32 keeps its digits if the largest product of elements is larger."""

LEAST_MAGNITUDES: Final = BLOCK**2 * LEAST_SUM
"""The same for the product of the sums of magnitudes of two vectors."""

CAREFUL: Final = 1e-20, 1e30
"""Range of |g|^2 in a block whose products with the next gradient are computed in float32."""

_FLOATS, _ROWS, _INTEGERS = float32[::1], float32[:, ::1], int64[::1]
_TABLE: Final = float64[:, ::1]
_SUMS, _FOLDS = float64[:, :, ::1], float32[:, :, ::1]
# `offsets`, `sizes` and `layer_of_block` of `trajstore.format.layout.Layout`.
_LAYOUT: Final = (_INTEGERS, _INTEGERS, _INTEGERS)
_BEFORE: Final = (
    *(_INTEGERS, _INTEGERS, *_LAYOUT, _ROWS, int64[:, ::1]),
    *(_SUMS, _INTEGERS, int64[:, ::1]),
    *(int64, _INTEGERS, _FLOATS, _FLOATS, _FLOATS, _FLOATS, _FLOATS, _FOLDS),
    *(_FLOATS, _FOLDS, _FLOATS, _FLOATS, _SUMS, _INTEGERS),
)
_AFTER: Final = (
    *(_INTEGERS, *_LAYOUT, _ROWS),
    *(_SUMS, _INTEGERS, int64[:, ::1]),
)


@inlined
def _buffer() -> Floats:
    """Return memory for a block, which begins at the start of a page; see `memory.PAGE`."""
    elements = np.empty(2 * BLOCK, np.float32)
    first = (-elements.ctypes.data % PAGE) // 4
    buffer: Floats = elements[first : first + BLOCK]
    return buffer


@inlined
def _update_products(
    parameter: Floats, anchor: Floats, displacement: Floats
) -> tuple[np.float64, np.float64]:
    """Return `_measure_update`, in float64 where that leaves the range of float32."""
    u_u, u_a = _measure_update(parameter, anchor, displacement)
    if LEAST_SUM < u_u < np.inf and abs(u_a) < np.inf:
        return np.float64(u_u), np.float64(u_a)
    return _measure_update_in_doubles(parameter, anchor, displacement)


@inlined
def _measure_block_before(
    gradient_address: int,
    parameter_address: int,
    index_in_tensor: int,
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
    layer: int,
    last_square: np.float32,
) -> np.float64:
    """Measure n elements, beginning with element `start` of the flat vector."""
    # That element is element `index_in_tensor` of its tensor. Returns the gradient's |g|^2.
    square = np.float64(0)
    stop = start + n
    gradient, displacement = rows[0, start:stop], rows[1, start:stop]
    anchor = rows[2, start:stop]
    parameter = _elements(parameter_address, index_in_tensor, n)
    if len(update_sums) > 0:
        u_u, u_a = _update_products(parameter, anchor, displacement)
        update_sums[layer, update_columns[0]] += u_u
        update_sums[layer, update_columns[1]] += u_a
    if gradient_address == 0:
        gradient[:] = 0
        _subtract(parameter, anchor, displacement)
        gradient_product = np.float32(0)
        a_a, displacement_product = _products(displacement, anchor, displacement)
    else:
        new = _elements(gradient_address, index_in_tensor, n)
        is_plain = last_square == 0 or CAREFUL[0] < last_square < CAREFUL[1]
        exact = np.float64(0)
        if not is_plain:
            # The next loop replaces the last gradient.
            exact = _product_in_doubles(new, gradient)
        g_previous, g_g, g_a, gradient_product, a_a, displacement_product = (
            _measure_vectors(parameter, anchor, new, gradient, displacement)
        )
        square = np.float64(g_g)
        if not _is_held(g_g):
            square = _in_range(g_g, rows[0, start:stop], rows[0, start:stop])
        if is_plain:
            # After such a jump of the gradient, the product has lost its digits.
            is_lost = 0 < square * last_square < LEAST_SUM**2
            exact = np.float64(np.nan) if is_lost else np.float64(g_previous)
        sums[columns[0]] += exact
        sums[columns[1]] += square
        if _is_held(g_a):
            sums[columns[2]] += g_a
        else:
            sums[columns[2]] += _in_range(g_a, rows[0, start:stop], rows[1, start:stop])
    if _is_held(a_a):
        sums[columns[3]] += a_a
    else:
        sums[columns[3]] += _in_range(a_a, rows[1, start:stop], rows[1, start:stop])
    for i in range(basis_columns.shape[1]):
        if i == 1:
            if past.shape[1] == 0:
                # In the first window all displacements from earlier anchors are 0.
                break
            vector[:] = 0
        if i > 0:
            # The anchor minus an earlier anchor is the sum of the codes between them.
            for k in range((1 << i) >> 2, min((1 << i) >> 1, past.shape[1])):
                scale = _elements(past[1, k], start // BLOCK, 1)[0]
                _add_decoded(_codes(past[0, k], start, n), scale, vector)
            gradient_product, displacement_product = _products(
                gradient, displacement, vector[:n]
            )
        first, second = np.float64(gradient_product), np.float64(displacement_product)
        if not (_is_held(gradient_product) and _is_held(displacement_product)):
            other = rows[2, start:stop] if i == 0 else vector[:n]
            first = _in_range(gradient_product, rows[0, start:stop], other)
            second = _in_range(displacement_product, rows[1, start:stop], other)
        sums[basis_columns[0, i]] += first
        sums[basis_columns[1, i]] += second
    return square


@inlined
def _fold_block(
    start: int,
    place: int,
    n_elements: int,
    rows: Floats,
    width: int,
    sketch_columns: Floats,
    probe_columns: Floats,
    probe_signs: Floats,
    row_signs: Floats,
    weight: np.float32,
    folds: Floats,
    window_signs: Floats,
    window_folds: Floats,
) -> None:
    """Fold neighbouring elements of a tensor, which may be in several rows of the fold."""
    # Element `start` of the flat vector has the place `place` in the vector that is folded.
    stop = start + n_elements
    while start < stop:
        row = place // width
        column = place - row * width
        n = min(stop - start, width - column)
        first = SHIFT * row + column
        gradient, stop_column = rows[0, start : start + n], column + n
        signs = sketch_columns[first : first + n]
        weighted = folds[2, column:stop_column]
        _fold(gradient, signs, row_signs[row] * weight, weighted)
        _fold_both(
            gradient,
            rows[1, start : start + n],
            probe_columns[first : first + n],
            probe_signs[row],
            folds[0, column:stop_column],
            folds[1, column:stop_column],
        )
        if len(window_folds) > 0:
            total = window_folds[row % len(window_folds), column:stop_column]
            _fold(gradient, signs, window_signs[row] * weight, total)
        start += n
        place += n


@compiled(int64, _INTEGERS, *_BEFORE)
def measure_before(
    part: int,
    bounds: Integers,  # (part + 1,): first block of each part, and the number of blocks
    gradients: Integers,  # (layer,): addresses of float32 tensors; 0 stands for zeros
    parameters: Integers,  # (layer,): addresses of float32 tensors
    offsets: Integers,
    sizes: Integers,
    layer_of_block: Integers,
    # (3, size): the last gradient, replaced by the gradient; the displacement, overwritten; the
    # anchor, only read.
    rows: Floats,
    past: Integers,  # (2, code): addresses of codes and scales, see `past_anchors`
    sums: Doubles,  # (part, layer, column): overwritten with the products
    columns: Integers,  # (product,): columns of `PRODUCTS` in `sums`
    basis_columns: Integers,  # (2, basis): columns of `BASIS_PRODUCTS` in `sums`
    width: int,  # length of a row of the fold; 0 if nothing is folded
    places: Integers,  # (block,): places of the first elements in the vector that is folded
    sketch_columns: Floats,  # (sign,): `Fold.column_sequence` of the sketch
    probe_columns: Floats,  # (sign,): `Fold.column_sequence` of the probes
    probe_signs: Floats,  # (row,): row signs of the probes
    row_signs: Floats,  # (row,): row signs of the sketch
    weights: Floats,  # (layer,): weights of the sketch
    # (part, 3, bucket): overwritten with folds of the gradient and the displacement for the
    # probes, and of the weighted gradient for the sketch.
    folds: Floats,
    window_signs: Floats,  # (row,): row signs of the window's sum
    # (part, fold, bucket): the weighted gradient is added to it; the rows are dealt to the folds
    window_folds: Floats,
    energies: Floats,  # (block,): |g|^2 of every block is added to it
    # (block,): |g|^2 of every block in the last step, NaN where float32 cannot hold it; overwritten
    squares: Floats,
    # (part, layer, column): overwritten with products of the last step's update, which leads to
    # the parameters; not measured if there are no layers
    update_sums: Doubles,
    update_columns: Integers,  # (product,): columns of `UPDATES` in `update_sums`
) -> None:
    """Measure gradients and parameters, and the last update, in the blocks of one part."""
    vector = _buffer()
    sums[part] = 0
    update_sums[part] = 0
    folds[part, :2, : min(width, BLOCK * len(layer_of_block))] = 0
    # The third fold is rotated later, which fills all its buckets, so clear all of them.
    folds[part, 2] = 0
    for block in range(bounds[part], bounds[part + 1]):
        layer = layer_of_block[block]
        start = block * BLOCK
        index_in_tensor = start - offsets[layer]
        n = min(BLOCK, sizes[layer] - index_in_tensor)
        square = _measure_block_before(
            gradients[layer],
            parameters[layer],
            index_in_tensor,
            start,
            n,
            rows,
            past,
            vector,
            sums[part, layer],
            columns,
            basis_columns,
            update_sums[part],
            update_columns,
            layer,
            squares[block],
        )
        energies[block] += np.float32(square)
        is_held = square == 0 or CAREFUL[0] < square < CAREFUL[1]
        squares[block] = np.float32(square) if is_held else np.float32(np.nan)
        if width > 0:
            _fold_block(
                start,
                places[block],
                n,
                rows,
                width,
                sketch_columns,
                probe_columns,
                probe_signs,
                row_signs,
                weights[layer],
                folds[part],
                window_signs,
                window_folds[part],
            )


@compiled_in_threads(_INTEGERS, types.Tuple(_BEFORE))
def measure_before_in_parts(bounds: Integers, arguments: Any) -> None:
    """Run `measure_before` for all parts, each in a thread of its own."""
    for part in prange(len(bounds) - 1):
        measure_before(part, bounds, *arguments)


@compiled(int64, _INTEGERS, *_AFTER)
def measure_after(
    part: int,
    bounds: Integers,
    parameters: Integers,
    offsets: Integers,
    sizes: Integers,
    layer_of_block: Integers,
    rows: Floats,
    sums: Doubles,
    columns: Integers,  # (product,): columns of `UPDATES` in `sums`
    checks: Integers,  # (part, layer): checksums of the parameters are added to it
) -> None:
    """Measure the update in the blocks of one part, after `measure_before` has run."""
    # Arguments without a comment are as in `measure_before`.
    for block in range(bounds[part], bounds[part + 1]):
        layer = layer_of_block[block]
        start = block * BLOCK
        index_in_tensor = start - offsets[layer]
        n = min(BLOCK, sizes[layer] - index_in_tensor)
        parameter = _elements(parameters[layer], index_in_tensor, n)
        u_u, u_a = _update_products(
            parameter, rows[2, start : start + n], rows[1, start : start + n]
        )
        sums[part, layer, columns[0]] += u_u
        sums[part, layer, columns[1]] += u_a
        checks[part, layer] += _sum_of_bits(parameter.view(np.int32), index_in_tensor)


@compiled_in_threads(_INTEGERS, types.Tuple(_AFTER))
def measure_after_in_parts(bounds: Integers, arguments: Any) -> None:
    """Run `measure_after` for all parts, each in a thread of its own."""
    for part in prange(len(bounds) - 1):
        measure_after(part, bounds, *arguments)


@compiled(_SUMS, int64, _TABLE)
def add_up(sums: Doubles, first: int, table: Doubles) -> None:
    """Add up the parts of `sums`, (part, layer, column), into columns of a table."""
    # The first column is `first`. The totals overwrite part 0 of `sums`.
    # Array expressions bring Numba's broadcasting along, which takes three seconds to compile.
    for part in range(1, sums.shape[0]):
        for layer in range(sums.shape[1]):
            for column in range(sums.shape[2]):
                sums[0, layer, column] += sums[part, layer, column]
    for layer in range(sums.shape[1]):
        for column in range(sums.shape[2]):
            table[layer, first + column] = sums[0, layer, column]


@compiled(_SUMS, int64, _TABLE, int64, float64[::1])
def add_update(
    sums: Doubles, first: int, table: Doubles, grad_sq: int, energy: Doubles
) -> None:
    """Do the same for an update, and add the column `grad_sq` to `energy`, (layer,)."""
    add_up(sums, first, table)
    for layer in range(len(energy)):
        # As resuming finds it in the store.
        energy[layer] += np.float32(table[layer, grad_sq])


@compiled(_INTEGERS, *_LAYOUT, _ROWS)
def subtract_anchor(
    parameters: Integers,
    offsets: Integers,
    sizes: Integers,
    layer_of_block: Integers,
    rows: Floats,
) -> None:
    """Write the displacement to `rows`; the arguments are as in `measure_before`."""
    for block in range(len(layer_of_block)):
        layer = layer_of_block[block]
        start = block * BLOCK
        index_in_tensor = start - offsets[layer]
        n = min(BLOCK, sizes[layer] - index_in_tensor)
        _subtract(
            _elements(parameters[layer], index_in_tensor, n),
            rows[2, start : start + n],
            rows[1, start : start + n],
        )
