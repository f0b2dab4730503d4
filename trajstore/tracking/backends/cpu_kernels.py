"""Compiled loops for CPUs that read gradients and parameters only once.

Plain torch operations would read the same vectors about twenty times. For a small net, starting
these operations would also take longer than the arithmetic. The loops in this module read a block
of `trajstore.format.layout.BLOCK` elements once, and use it for all products and folds. The
results equal the results of `eager` up to rounding.

Numba compiles these functions when they are first imported, which takes several seconds, and
keeps the result on disk until this file changes. All the functions are in one file because Numba
would not notice a change in another file. The first half of the file consists of short loops over
few arrays: the compiler can rule out that so few arrays overlap, and vectorises the loops.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import (
    float32,
    float64,
    int8,
    int32,
    int64,
    prange,
    types,
    uint8,
    uint64,
    void,
)
from numba.extending import intrinsic

from trajstore.format.layout import BLOCK
from trajstore.sketch.fold import SHIFT
from trajstore.sketch.levels import GUIDED
from trajstore.tracking.backends.threads import preserve_torch_threads

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

F = TypeVar("F", bound=Callable[..., Any])

_REORDER: Final = frozenset({"reassoc", "contract", "nsz", "arcp"})
"""LLVM flags that permit reordering sums, but leave infinities and NaN valid."""

_LANES: Final = 16
"""Number of elements in a vector register, for loops that are written with LLVM vectors."""

_OPTIONS: Final = {"nogil": True, "fastmath": set(_REORDER)}


def _jit(function: F, *signature: Any, **options: Any) -> F:
    options = _OPTIONS | options
    try:
        compiled = numba.njit(*signature, cache=True, **options)(function)
    except RuntimeError:
        # Numba has no cache directory, so every process has to compile the function.
        compiled = numba.njit(*signature, **options)(function)
    return cast("F", compiled)


def _compiled(*signature: Any) -> Callable[[F], F]:
    """Compile a function on import for arguments of these types."""

    def compiled(function: F) -> F:
        return _jit(function, void(*signature))

    return compiled


_IN_THREADS: Final = list[Callable[[], Any]]()  # compile functions that run in threads


def compile_for_threads() -> None:
    """Compile the functions that run in threads."""
    for compiled_now in _IN_THREADS:
        compiled_now()


def _compiled_in_threads(*signature: Any) -> Callable[[F], F]:
    """Compile a function, whose loops over `prange` run in threads, when it is needed."""

    # Compiling starts Numba's threads. With GNU OpenMP, processes that are forked later cannot
    # use Numba in threads of their own, so no threads are started where one is enough.
    def compiled(function: F) -> F:
        @cache
        def compiled_now() -> F:
            with preserve_torch_threads():
                return _jit(function, void(*signature), parallel=True)

        _IN_THREADS.append(compiled_now)

        @wraps(function)
        def call(*arguments: Any) -> Any:
            return compiled_now()(*arguments)

        return cast("F", call)

    return compiled


def _inlined(function: F) -> F:
    """Compile a function as part of the functions that call it."""
    return _jit(function)


def _loop(function: F) -> F:
    """Compile a loop over few arrays separately from its callers, to have it vectorised."""
    return _jit(function, inline="never")


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


@_inlined
def _elements(address: int, first: int, n: int) -> Floats:
    """Return n elements of the tensor at an address, starting with the element `first`."""
    whole: Floats = numba.carray(_float32_at(address), (first + n,))
    return whole[first:]


@_inlined
def _codes(address: int, first: int, n: int) -> npt.NDArray[np.int8]:
    """Return n of the codes at an address, starting with the code `first`."""
    whole: npt.NDArray[np.int8] = numba.carray(_int8_at(address), (first + n,))
    return whole[first:]


@_loop
def _subtract(a: Floats, b: Floats, out: Floats) -> None:
    """Set `out` to a - b."""
    for i in range(len(a)):
        out[i] = a[i] - b[i]


@_loop
def _product(a: Floats, b: Floats) -> np.float32:
    """Return <a, b>."""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@_loop
def _products(a: Floats, b: Floats, c: Floats) -> tuple[np.float32, np.float32]:
    """Return <a, c> and <b, c>."""
    first = second = np.float32(0)
    for i in range(len(c)):
        first += a[i] * c[i]
        second += b[i] * c[i]
    return first, second


@_loop
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


@_loop
def _add_decoded(
    codes: npt.NDArray[np.int8], scale: np.float32, vector: Floats
) -> None:
    """Decode the codes of one block, as `trajstore.sketch.deltas` does, and add the result."""
    for i in range(len(codes)):
        vector[i] += np.float32(codes[i]) * scale


@_loop
def _sum_of_bits(words: npt.NDArray[np.int32], place: int) -> np.int64:
    """Return a checksum that depends on the words and on their places in a tensor."""
    total = np.int64(0)
    for i in range(len(words)):
        total += np.int64(words[i]) * (2 * (place + i) + 1)
    return total


@_loop
def _fold(
    gradient: Floats,
    displacement: Floats,
    signs: Floats,
    probe_signs: Floats,
    probe_sign: np.float32,
    weighted_sign: np.float32,
    gradient_fold: Floats,
    displacement_fold: Floats,
    weighted_fold: Floats,
) -> None:
    """Add signed vectors to the three folds, as described in `measure_before`."""
    for i in range(len(signs)):
        weighted_fold[i] += weighted_sign * signs[i] * gradient[i]
    for i in range(len(signs)):
        sign = probe_sign * probe_signs[i]
        gradient_fold[i] += sign * gradient[i]
        displacement_fold[i] += sign * displacement[i]


@_loop
def _fold_with_sum(
    gradient: Floats,
    displacement: Floats,
    signs: Floats,
    probe_signs: Floats,
    probe_sign: np.float32,
    weighted_sign: np.float32,
    window_sign: np.float32,
    gradient_fold: Floats,
    displacement_fold: Floats,
    weighted_fold: Floats,
    window_fold: Floats,
) -> None:
    """Add signed vectors to the three folds and to the fold of the window's sum."""
    for i in range(len(signs)):
        signed = signs[i] * gradient[i]
        weighted_fold[i] += weighted_sign * signed
        window_fold[i] += window_sign * signed
    for i in range(len(signs)):
        sign = probe_sign * probe_signs[i]
        gradient_fold[i] += sign * gradient[i]
        displacement_fold[i] += sign * displacement[i]


@_loop
def _fold_vector(vector: Floats, signs: Floats, sign: np.float32, out: Floats) -> None:
    """Add a vector times column signs and a row sign to a fold."""
    for i in range(len(vector)):
        out[i] += sign * signs[i] * vector[i]


@_loop
def _add_signed(a: Floats, signs: Floats, out: Floats) -> None:
    """Add a * signs to `out`."""
    for i in range(len(a)):
        out[i] += a[i] * signs[i]


@_loop
def _multiply(a: Floats, signs: Floats, scale: np.float32) -> None:
    """Multiply a by signs and a scale in place."""
    for i in range(len(a)):
        a[i] *= signs[i] * scale


def _hadamard_within(builder: Any, a: Any) -> Any:
    """Emit the Hadamard transform of the elements of one vector."""
    # Sums of floats depend on the order of the levels, and so do the bits of recordings.
    for stride in (8, 4, 2, 1):
        partners = [k ^ stride for k in range(_LANES)]
        signs = [-1.0 if k & stride else 1.0 for k in range(_LANES)]
        places = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), partners)
        partner = builder.shuffle_vector(a, a, places)
        a = builder.fadd(partner, builder.fmul(a, ir.Constant(a.type, signs)))
    return a


def _hadamard_across(builder: Any, vectors: list[Any]) -> None:
    """Emit the Hadamard transform over elements at the same place in `_LANES` vectors."""
    for stride in (2, 1, 8, 4):
        for i in range(_LANES):
            if not i & stride:
                a, b = vectors[i], vectors[i + stride]
                vectors[i], vectors[i + stride] = builder.fadd(a, b), builder.fsub(a, b)


def _transform(builder: Any, address: Any, n_vectors: int) -> None:
    """Emit the Hadamard transform of one vector, or of `_LANES` vectors, at an address."""
    pointer_type = ir.VectorType(ir.FloatType(), _LANES).as_pointer()
    offsets = [ir.Constant(address.type, 4 * _LANES * i) for i in range(n_vectors)]
    pointers = [
        builder.inttoptr(builder.add(address, o), pointer_type) for o in offsets
    ]
    vectors = [
        _hadamard_within(builder, builder.load(pointer, align=4))
        for pointer in pointers
    ]
    if n_vectors > 1:
        _hadamard_across(builder, vectors)
    for a, pointer in zip(vectors, pointers, strict=True):
        builder.store(a, pointer, align=4)


def _transform_vector(_context: Any, _address: Any) -> Any:
    """Apply the Hadamard transform to the `_LANES` elements at an address."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        _transform(builder, arguments[0], 1)
        return context.get_dummy_value()

    return void(int64), generate_code


def _transform_block(_context: Any, _address: Any) -> Any:
    """Apply the Hadamard transform to the `_LANES`^2 elements at an address."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        _transform(builder, arguments[0], _LANES)
        return context.get_dummy_value()

    return void(int64), generate_code


_hadamard_of_vector: Final = intrinsic(_transform_vector)
_hadamard_of_block: Final = intrinsic(_transform_block)


@_inlined
def _hadamard(a: Floats, filled: int) -> None:
    """Apply the Hadamard transform, not normalised, in place.

    All elements after the first `filled` elements are zero; sums of only zeros are skipped.
    """
    n, stride, address = len(a), 1, a.ctypes.data
    if n >= _LANES * _LANES:
        stride = _LANES * _LANES
        for i in range(0, filled, stride):
            _hadamard_of_block(address + 4 * i)
    elif n >= _LANES:
        stride = _LANES
        for i in range(0, filled, stride):
            _hadamard_of_vector(address + 4 * i)
    while 4 * stride <= n:
        for i in range(0, filled, 4 * stride):
            _hadamard_of_4(
                a[i : i + stride],
                a[i + stride : i + 2 * stride],
                a[i + 2 * stride : i + 3 * stride],
                a[i + 3 * stride : i + 4 * stride],
            )
        stride *= 4
    while stride < n:
        for i in range(0, filled, 2 * stride):
            _hadamard_of_2(a[i : i + stride], a[i + stride : i + 2 * stride])
        stride *= 2


@_loop
def _hadamard_of_2(a: Floats, b: Floats) -> None:
    """Apply one level of butterflies between two parts."""
    for i in range(len(a)):
        total, difference = a[i] + b[i], a[i] - b[i]
        a[i] = total
        b[i] = difference


@_loop
def _hadamard_of_4(a: Floats, b: Floats, c: Floats, d: Floats) -> None:
    """Apply two levels of butterflies between four parts."""
    for i in range(len(a)):
        ac, bd = a[i] + c[i], b[i] + d[i]
        a_c, b_d = a[i] - c[i], b[i] - d[i]
        a[i] = ac + bd
        b[i] = ac - bd
        c[i] = a_c + b_d
        d[i] = a_c - b_d


@_loop
def _norms(a: Floats) -> tuple[np.float32, np.float32]:
    """Return |a|^2 and the sum of the absolute values of a."""
    energy = magnitude = np.float32(0)
    for i in range(len(a)):
        energy += a[i] * a[i]
        magnitude += abs(a[i])
    return energy, magnitude


@_inlined
def _philox(
    block: np.uint64, step: int, seed: int, role: int, words: npt.NDArray[np.uint64]
) -> None:
    """Write a block of four random words of Philox4x64-10; see `trajstore.sketch.signs`."""
    a, b, c, d = np.uint64(block), np.uint64(0), np.uint64(0), np.uint64(step)
    first, second = np.uint64(seed), np.uint64(role)
    for _ in range(10):
        high_a = _high_product(np.uint64(0xD2E7470EE14C6C93), a)
        low_a = np.uint64(0xD2E7470EE14C6C93) * a
        high_c = _high_product(np.uint64(0xCA5A826395121157), c)
        low_c = np.uint64(0xCA5A826395121157) * c
        a, b, c, d = high_c ^ b ^ first, low_c, high_a ^ d ^ second, low_a
        first += np.uint64(0x9E3779B97F4A7C15)
        second += np.uint64(0xBB67AE8584CAA73B)
    words[0] = a
    words[1] = b
    words[2] = c
    words[3] = d


@_inlined
def _high_product(x: np.uint64, y: np.uint64) -> np.uint64:
    """Return the upper 64 bits of the 128-bit product."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    x_low, x_high, y_low, y_high = x & mask, x >> half, y & mask, y >> half
    first_cross = x_high * y_low + ((x_low * y_low) >> half)
    second_cross = x_low * y_high + (first_cross & mask)
    high: np.uint64 = x_high * y_high + (first_cross >> half) + (second_cross >> half)
    return high


def _spread_bits(_context: Any, _word: Any, _address: Any) -> Any:
    """Write 64 bits as signs, in little-endian byte order, and highest bit first in a byte."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        word, address = arguments
        signs, bits = (ir.VectorType(t, 64) for t in (ir.FloatType(), ir.IntType(1)))
        is_plus = builder.bitcast(_reverse_bits_in_bytes(builder, word), bits)
        plus, minus = (ir.Constant(signs, [sign] * 64) for sign in (1.0, -1.0))
        pointer = builder.inttoptr(address, signs.as_pointer())
        builder.store(builder.select(is_plus, plus, minus), pointer, align=4)
        return context.get_dummy_value()

    return void(uint64, int64), generate_code


def _gather_bits(_context: Any, _address: Any) -> Any:
    """Return 64 signs as bits in the order of `_spread_bits`: 1 for numbers >= 0, else 0."""

    def generate_code(
        _context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        vector_type = ir.VectorType(ir.FloatType(), 64)
        pointer = builder.inttoptr(arguments[0], vector_type.as_pointer())
        values = builder.load(pointer, align=4)
        zeros = ir.Constant(vector_type, [0.0] * 64)
        bits = builder.bitcast(
            builder.fcmp_ordered(">=", values, zeros), ir.IntType(64)
        )
        return _reverse_bits_in_bytes(builder, bits)

    return uint64(int64), generate_code


def _reverse_bits_in_bytes(builder: Any, word: Any) -> Any:
    """Emit the reversal of the bits in each byte, because vectors begin with the lowest bit."""
    return builder.bswap(builder.bitreverse(word))


_write_signs: Final = intrinsic(_spread_bits)
_read_signs: Final = intrinsic(_gather_bits)


@_inlined
def _pack(a: Floats, code: npt.NDArray[np.uint8]) -> None:
    """Write the signs of a as bits, 1 for numbers >= 0; the first number has the highest bit."""
    n_words, address = len(code) // 8, a.ctypes.data
    words = code[: 8 * n_words].view(np.uint64)
    for i in range(n_words):
        words[i] = _read_signs(address + 4 * 64 * i)
    for i in range(8 * n_words, len(code)):
        byte = 0
        for k in range(8):
            byte = (byte << 1) | (a[8 * i + k] >= 0)
        code[i] = byte


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

_FLOATS, _ROWS, _INTEGERS = float32[::1], float32[:, ::1], int64[::1]
_SUMS, _FOLDS = float64[:, :, ::1], float32[:, :, ::1]
# `offsets`, `sizes` and `layer_of_block` of `trajstore.format.layout.Layout`.
_LAYOUT: Final = (_INTEGERS, _INTEGERS, _INTEGERS)
_BEFORE: Final = (
    *(_INTEGERS, _INTEGERS, *_LAYOUT, _ROWS, int64[:, ::1]),
    *(_SUMS, _INTEGERS, int64[:, ::1]),
    *(int64, _INTEGERS, _FLOATS, _FLOATS, _FLOATS, _FLOATS, _FLOATS, _FOLDS),
    *(_FLOATS, _FOLDS, _FLOATS),
)
_AFTER: Final = (
    *(_INTEGERS, *_LAYOUT, _ROWS),
    *(_SUMS, _INTEGERS, int64[:, ::1]),
)


@_inlined
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
) -> np.float32:
    """Measure n elements, beginning with element `start` of the flat vector."""
    # That element is element `index_in_tensor` of its tensor. Returns the gradient's |g|^2.
    square = np.float32(0)
    stop = start + n
    gradient, displacement = rows[0, start:stop], rows[1, start:stop]
    anchor = rows[2, start:stop]
    parameter = _elements(parameter_address, index_in_tensor, n)
    if gradient_address == 0:
        gradient[:] = 0
        _subtract(parameter, anchor, displacement)
        gradient_product = np.float32(0)
        a_a, displacement_product = _products(displacement, anchor, displacement)
    else:
        g_previous, square, g_a, gradient_product, a_a, displacement_product = (
            _measure_vectors(
                parameter,
                anchor,
                _elements(gradient_address, index_in_tensor, n),
                gradient,
                displacement,
            )
        )
        sums[columns[0]] += g_previous
        sums[columns[1]] += square
        sums[columns[2]] += g_a
    sums[columns[3]] += a_a
    for i in range(basis_columns.shape[1]):
        if i == 1:
            vector[:] = 0
        if i > 0:
            # The anchor minus an earlier anchor is the sum of the codes between them.
            for k in range((1 << i) >> 2, min((1 << i) >> 1, past.shape[1])):
                scale = _elements(past[1, k], start // BLOCK, 1)[0]
                _add_decoded(_codes(past[0, k], start, n), scale, vector)
            gradient_product, displacement_product = _products(
                gradient, displacement, vector[:n]
            )
        sums[basis_columns[0, i]] += gradient_product
        sums[basis_columns[1, i]] += displacement_product
    return square


@_inlined
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
        if len(window_folds) == 0:
            _fold(
                rows[0, start : start + n],
                rows[1, start : start + n],
                sketch_columns[first : first + n],
                probe_columns[first : first + n],
                probe_signs[row],
                row_signs[row] * weight,
                folds[0, column : column + n],
                folds[1, column : column + n],
                folds[2, column : column + n],
            )
        else:
            _fold_with_sum(
                rows[0, start : start + n],
                rows[1, start : start + n],
                sketch_columns[first : first + n],
                probe_columns[first : first + n],
                probe_signs[row],
                row_signs[row] * weight,
                window_signs[row] * weight,
                folds[0, column : column + n],
                folds[1, column : column + n],
                folds[2, column : column + n],
                window_folds[row % len(window_folds), column : column + n],
            )
        start += n
        place += n


@_compiled(int64, _INTEGERS, *_BEFORE)
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
    sums: Doubles,  # (part, layer, column): the products are added to it
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
    energies: Floats,  # (block,): overwritten with |g|^2 of every block
) -> None:
    """Measure gradients and parameters in the blocks of one part."""
    vector = np.empty(BLOCK, np.float32)
    folds[part, :2, : min(width, BLOCK * len(layer_of_block))] = 0
    # The third fold is rotated later, which fills all its buckets, so clear all of them.
    folds[part, 2] = 0
    for block in range(bounds[part], bounds[part + 1]):
        layer = layer_of_block[block]
        start = block * BLOCK
        index_in_tensor = start - offsets[layer]
        n = min(BLOCK, sizes[layer] - index_in_tensor)
        energies[block] = _measure_block_before(
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
        )
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


@_compiled_in_threads(_INTEGERS, types.Tuple(_BEFORE))
def measure_before_in_parts(bounds: Integers, arguments: Any) -> None:
    """Run `measure_before` for all parts, each in a thread of its own."""
    for part in prange(len(bounds) - 1):
        measure_before(part, bounds, *arguments)


@_compiled(int64, _INTEGERS, *_AFTER)
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
    update = np.empty(BLOCK, np.float32)
    for block in range(bounds[part], bounds[part + 1]):
        layer = layer_of_block[block]
        start = block * BLOCK
        index_in_tensor = start - offsets[layer]
        n = min(BLOCK, sizes[layer] - index_in_tensor)
        parameter = _elements(parameters[layer], index_in_tensor, n)
        displacement = rows[1, start : start + n]
        # Near the anchor r, x - r is exact, and so is the difference of two displacements.
        _subtract(parameter, rows[2, start : start + n], update)
        _subtract(update[:n], displacement, update)
        square, product = _products(update, displacement, update[:n])
        sums[part, layer, columns[0]] += square
        sums[part, layer, columns[1]] += product
        checks[part, layer] += _sum_of_bits(parameter.view(np.int32), index_in_tensor)


@_compiled_in_threads(_INTEGERS, types.Tuple(_AFTER))
def measure_after_in_parts(bounds: Integers, arguments: Any) -> None:
    """Run `measure_after` for all parts, each in a thread of its own."""
    for part in prange(len(bounds) - 1):
        measure_after(part, bounds, *arguments)


@_compiled(_SUMS, int64, _ROWS)
def add_up(sums: Doubles, first: int, table: Floats) -> None:
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


@_compiled(_ROWS, int64, float64[::1])
def add_column(table: Floats, column: int, total: Doubles) -> None:
    """Add a column of a table, (layer, column), to `total`, (layer,)."""
    for layer in range(len(total)):
        total[layer] += table[layer, column]


@_compiled(_INTEGERS, *_LAYOUT, _ROWS)
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


@_compiled(_FLOATS, int64, _FLOATS, _FLOATS, _FLOATS)
def fold(
    vector: Floats, width: int, columns: Floats, row_signs: Floats, out: Floats
) -> None:
    """Add the fold of a vector, (size,), to `out`, (bucket,); see `trajstore.sketch.fold`."""
    for row in range(len(row_signs)):
        part = vector[row * width : (row + 1) * width]
        signs = columns[SHIFT * row :]
        _fold_vector(part, signs, row_signs[row], out)


@_compiled(uint64, uint64, uint64, _FLOATS)
def draw_signs(seed: int, role: int, step: int, signs: Floats) -> None:
    """Write the random signs of a step; see `trajstore.sketch.signs`."""
    # The number of signs is a multiple of 64.
    words, address = np.empty(4, np.uint64), signs.ctypes.data
    for i in range(0, len(signs), 256):
        _philox(np.uint64(i // 256 + 1), step, seed, role, words)
        for k in range(min(4, (len(signs) - i) // 64)):
            _write_signs(words[k], address + 4 * (i + 64 * k))


@_compiled(_FOLDS, int64, _FLOATS, int64, int64, int64, _ROWS)
def probe(
    folds: Floats,  # (part, fold, bucket): first folds; the parts are added up
    filled: int,  # number of buckets of the first fold that may differ from 0
    signs: Floats,  # (bucket,): fixed signs of the second fold
    n_probes: int,
    # `block` and `shift` of `trajstore.sketch.probes.Probes`.
    block: int,
    shift: int,
    out: Floats,  # (vector, probe or more): overwritten; vector i is fold i of `folds`
) -> None:
    """Compute probes from first folds, as described in `trajstore.sketch.probes`."""
    out[:] = 0
    for part in range(len(folds)):
        for vector in range(len(out)):
            for first in range(0, filled, block):
                start, stop = first, min(first + block, filled)
                place = (first + shift * (first // block)) % n_probes
                while start < stop:
                    n = min(stop - start, n_probes - place)
                    _add_signed(
                        folds[part, vector, start : start + n],
                        signs[start : start + n],
                        out[vector, place : place + n],
                    )
                    start += n
                    place = 0


@_compiled(_FOLDS, int64, _FLOATS, int64, int64)
def rotate(
    folds: Floats,  # (part, fold, number): reads the last fold, and overwrites it in part 0
    filled: int,  # number of buckets of a fold that may differ from 0
    signs: Floats,  # (number,): random signs of the rotation
    first_block: int,  # length of a block of the first Hadamard transform
    block: int,  # length of a block of the second Hadamard transform
) -> None:
    """Rotate a fold, as `trajstore.sketch.rotation` does."""
    buckets = folds[0, -1]
    for part in range(1, len(folds)):
        buckets[:filled] += folds[part, -1, :filled]
    half = len(buckets) // 2
    _multiply(buckets[:filled], signs, np.float32(1 / np.sqrt(first_block)))
    for start in range(0, filled, first_block):
        part = buckets[start : start + first_block]
        _hadamard(part, min(first_block, filled - start))
    scale = np.float32(1 / np.sqrt(block))
    _multiply(buckets[:half], signs[half:], scale)
    _multiply(buckets[half:], signs[:half], scale)
    for start in range(0, len(buckets), block):
        _hadamard(buckets[start : start + block], block)


@_compiled(_FLOATS, uint8[::1], _FLOATS)
def code_signs(
    numbers: Floats,  # (number,)
    code: npt.NDArray[np.uint8],  # (number / 8,): overwritten
    scales: Floats,  # (block,): overwritten
) -> None:
    """Code numbers with one bit each, as `trajstore.sketch.onebit` does."""
    block = len(numbers) // len(scales)
    for i in range(len(scales)):
        energy, magnitude = _norms(numbers[i * block : (i + 1) * block])
        scales[i] = energy / magnitude if magnitude != 0 else 0
    _pack(numbers, code)


@_loop
def _find_levels(
    a: Floats, scale: np.float32, bits: int, borders: Floats, found: Integers
) -> None:
    """Write how many borders do not exceed each number of a, times a scale."""
    # A search without branches, whose outcomes no processor could predict.
    for i in range(len(a)):
        number, level = a[i] * scale, 0
        for k in range(bits - 1, -1, -1):
            level += int(borders[level + (1 << k) - 1] <= number) << k
        found[i] = level


@_loop
def _find_levels_from_guide(
    a: Floats,
    scale: np.float32,
    bits: int,
    borders: Floats,
    guide: npt.NDArray[np.int32],
    found: Integers,
) -> None:
    """Do the same in fewer steps, if there are many borders."""
    n, half = len(borders), len(guide) // 2
    cells_per_unit = np.float32(half / GUIDED)
    for i in range(len(a)):
        number = a[i] * scale
        if abs(number) < GUIDED:
            level = guide[int(number * cells_per_unit + half)]
            while level < n and borders[level] <= number:
                level += 1
            found[i] = level
        else:
            _find_levels(a[i : i + 1], scale, bits, borders, found[i : i + 1])


@_loop
def _product_with_levels(a: Floats, levels: Floats, found: Integers) -> np.float32:
    """Return the product of a with the levels that were found for it."""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * levels[found[i]]
    return total


@_loop
def _pack_levels(found: Integers, bits: int, code: npt.NDArray[np.uint8]) -> None:
    """Write the numbers of levels with several bits each, highest bit first."""
    if bits > 8:
        for i in range(len(found)):
            code[2 * i] = found[i] >> 8
            code[2 * i + 1] = found[i] & 255
        return
    n = 8 // bits
    for i in range(len(code)):
        byte = 0
        for k in range(n):
            byte = (byte << bits) | found[n * i + k]
        code[i] = byte


@_compiled(_FLOATS, int64, _FLOATS, _FLOATS, int32[::1], uint8[::1], _FLOATS)
def code_levels(
    numbers: Floats,  # (number,)
    bits: int,  # number of bits per number, at least 2
    levels: Floats,  # (2^bits,)
    borders: Floats,  # (2^bits - 1,)
    guide: npt.NDArray[np.int32],  # (cell,): see `trajstore.sketch.levels.guide`
    code: npt.NDArray[np.uint8],  # (bits * number / 8,): overwritten
    scales: Floats,  # (block,): overwritten
) -> None:
    """Code numbers with several bits each, as `trajstore.sketch.levels` does."""
    block = len(numbers) // len(scales)
    found = np.empty(len(numbers), np.int64)
    for i in range(len(scales)):
        part = numbers[i * block : (i + 1) * block]
        levels_of_part = found[i * block : (i + 1) * block]
        energy, _ = _norms(part)
        inverse = np.float32(1)
        if energy != 0:
            inverse = np.float32(1) / np.sqrt(energy / np.float32(block))
        if bits < 8:
            _find_levels(part, inverse, bits, borders, levels_of_part)
        else:
            _find_levels_from_guide(part, inverse, bits, borders, guide, levels_of_part)
        product = _product_with_levels(part, levels, levels_of_part)
        scales[i] = energy / product if energy != 0 else 0
    _pack_levels(found, bits, code)
