"""Compiled loops for CPUs that read gradients and parameters once.

torch would pass over the same vectors some twenty times, and spend more time of a small
net's step on starting operations than on arithmetic. Here a block of `layout.BLOCK` elements
is read once and used for all products and folds. The results equal those of `eager` up to
rounding.

Numba compiles these functions at their first import, which takes some seconds, and keeps the
result on disk until this file changes. All of them are in one file because Numba would not
notice a change elsewhere. The first half are short loops over few arrays, which the compiler
can tell apart and vectorise.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import float32, float64, int8, int64, prange, types, uint8, uint64, void
from numba.extending import intrinsic

from trajstore.format.layout import BLOCK
from trajstore.sketch.fold import SHIFT
from trajstore.tracking.backends.threads import preserve_torch_threads

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

F = TypeVar("F", bound=Callable[..., Any])

_REORDER: Final = frozenset({"reassoc", "contract", "nsz", "arcp"})
"""Permission to reorder sums; infinities and NaN keep their meaning."""

_LANES: Final = 16
"""Elements in a vector, where loops are written in vectors."""

_OPTIONS: Final = {"nogil": True, "fastmath": set(_REORDER)}


def _jit(function: F, *signature: Any, **options: Any) -> F:
    options = _OPTIONS | options
    try:
        compiled = numba.njit(*signature, cache=True, **options)(function)
    except RuntimeError:
        # There is no directory to keep it in; it has to be compiled in every process.
        compiled = numba.njit(*signature, **options)(function)
    return cast("F", compiled)


def _compiled(*signature: Any, in_threads: bool = False) -> Callable[[F], F]:
    """Compile a function for these types on import; `in_threads` runs `prange` in threads."""

    def compiled(function: F) -> F:
        with preserve_torch_threads():
            return _jit(function, void(*signature), parallel=in_threads)

    return compiled


def _inlined(function: F) -> F:
    """Compile a function together with those that call it."""
    return _jit(function)


def _loop(function: F) -> F:
    """Compile a loop over few arrays apart from its caller, so that it is vectorised."""
    return _jit(function, inline="never")


def _pointer_to(kind: Any) -> Callable[..., Any]:
    """Make a function that takes an integer for the address of a number of this type."""
    pointer = types.CPointer(kind)

    def take(_context: Any, address: Any) -> Any:
        return pointer(address), generate

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return cast("Callable[..., Any]", intrinsic(take))


_float32_at: Final = _pointer_to(float32)
_int8_at: Final = _pointer_to(int8)


@_inlined
def _elements(address: int, first: int, n: int) -> Floats:
    """Return n elements, starting with `first`, of the tensor at an address."""
    whole: Floats = numba.carray(_float32_at(address), (first + n,))
    return whole[first:]


@_inlined
def _codes(address: int, first: int, n: int) -> npt.NDArray[np.int8]:
    """Return n codes, starting with `first`, of the codes at an address."""
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
def _add_decoded(
    codes: npt.NDArray[np.int8], scale: np.float32, vector: Floats
) -> None:
    """Add the decoded codes of one block, see `trajstore.sketch.deltas.decode`."""
    for i in range(len(codes)):
        vector[i] += np.float32(codes[i]) * scale


@_loop
def _sum_of_bits(words: npt.NDArray[np.int32], place: int) -> np.int64:
    """Return a sum that changes with the bits, and with their places in a tensor."""
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
    of_gradient: Floats,
    of_displacement: Floats,
    of_weighted: Floats,
) -> None:
    """Add signed vectors to three folds, see `_fold_block`."""
    for i in range(len(signs)):
        of_weighted[i] += weighted_sign * signs[i] * gradient[i]
    for i in range(len(signs)):
        sign = probe_sign * probe_signs[i]
        of_gradient[i] += sign * gradient[i]
        of_displacement[i] += sign * displacement[i]


@_loop
def _fold_one(vector: Floats, signs: Floats, sign: np.float32, out: Floats) -> None:
    """Add a signed vector to a fold."""
    for i in range(len(vector)):
        out[i] += sign * signs[i] * vector[i]


@_loop
def _add_signed(a: Floats, signs: Floats, out: Floats) -> None:
    """Add a * signs to `out`."""
    for i in range(len(a)):
        out[i] += a[i] * signs[i]


@_loop
def _multiply(a: Floats, signs: Floats, scale: np.float32) -> None:
    """Multiply a by signs and a scale."""
    for i in range(len(a)):
        a[i] *= signs[i] * scale


def _hadamard_within(builder: Any, a: Any) -> Any:
    """Emit the transform of the elements of one vector."""
    # The order of levels determines the bits of recordings: sums of floats depend on it.
    for h in (8, 4, 2, 1):
        partners = [k ^ h for k in range(_LANES)]
        signs = [-1.0 if k & h else 1.0 for k in range(_LANES)]
        places = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), partners)
        partner = builder.shuffle_vector(a, a, places)
        a = builder.fadd(partner, builder.fmul(a, ir.Constant(a.type, signs)))
    return a


def _hadamard_across(builder: Any, vectors: list[Any]) -> None:
    """Emit the transform over `_LANES` vectors of elements in the same places."""
    for h in (2, 1, 8, 4):
        for i in range(_LANES):
            if not i & h:
                a, b = vectors[i], vectors[i + h]
                vectors[i], vectors[i + h] = builder.fadd(a, b), builder.fsub(a, b)


def _transform(builder: Any, address: Any, n_vectors: int) -> None:
    """Emit the transform of the elements of one vector, or of `_LANES` vectors."""
    kind = ir.VectorType(ir.FloatType(), _LANES).as_pointer()
    offsets = [ir.Constant(address.type, 4 * _LANES * i) for i in range(n_vectors)]
    pointers = [builder.inttoptr(builder.add(address, o), kind) for o in offsets]
    vectors = [
        _hadamard_within(builder, builder.load(pointer, align=4))
        for pointer in pointers
    ]
    if n_vectors > 1:
        _hadamard_across(builder, vectors)
    for a, pointer in zip(vectors, pointers, strict=True):
        builder.store(a, pointer, align=4)


def _transform_vector(_context: Any, _address: Any) -> Any:
    """Transform the `_LANES` elements at an address."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        _transform(builder, arguments[0], 1)
        return context.get_dummy_value()

    return void(int64), generate


def _transform_square(_context: Any, _address: Any) -> Any:
    """Transform the `_LANES` squared elements at an address."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        _transform(builder, arguments[0], _LANES)
        return context.get_dummy_value()

    return void(int64), generate


_hadamard_of_vector: Final = intrinsic(_transform_vector)
_hadamard_of_square: Final = intrinsic(_transform_square)


@_inlined
def _hadamard(a: Floats, filled: int) -> None:
    """Apply the Hadamard transform without its normalisation, in place.

    Elements from `filled` on are zero; sums of zeros alone are skipped.
    """
    n, h, address = len(a), 1, a.ctypes.data
    if n >= _LANES * _LANES:
        h = _LANES * _LANES
        for i in range(0, filled, h):
            _hadamard_of_square(address + 4 * i)
    elif n >= _LANES:
        h = _LANES
        for i in range(0, filled, h):
            _hadamard_of_vector(address + 4 * i)
    while 4 * h <= n:
        for i in range(0, filled, 4 * h):
            _hadamard_of_4(
                a[i : i + h],
                a[i + h : i + 2 * h],
                a[i + 2 * h : i + 3 * h],
                a[i + 3 * h : i + 4 * h],
            )
        h *= 4
    while h < n:
        for i in range(0, filled, 2 * h):
            _hadamard_of_2(a[i : i + h], a[i + h : i + 2 * h])
        h *= 2


@_loop
def _hadamard_of_2(a: Floats, b: Floats) -> None:
    """One level of butterflies between two parts."""
    for i in range(len(a)):
        total, difference = a[i] + b[i], a[i] - b[i]
        a[i] = total
        b[i] = difference


@_loop
def _hadamard_of_4(a: Floats, b: Floats, c: Floats, d: Floats) -> None:
    """Two levels of butterflies between four parts."""
    for i in range(len(a)):
        ac, bd = a[i] + c[i], b[i] + d[i]
        a_c, b_d = a[i] - c[i], b[i] - d[i]
        a[i] = ac + bd
        b[i] = ac - bd
        c[i] = a_c + b_d
        d[i] = a_c - b_d


@_loop
def _norms(a: Floats) -> tuple[np.float32, np.float32]:
    """Return |a|^2 and the sum of magnitudes."""
    energy = magnitude = np.float32(0)
    for i in range(len(a)):
        energy += a[i] * a[i]
        magnitude += abs(a[i])
    return energy, magnitude


@_inlined
def _philox(
    block: np.uint64, step: int, seed: int, role: int, words: npt.NDArray[np.uint64]
) -> None:
    """Write four words of Philox4x64-10, see `trajstore.sketch.signs`."""
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
    """Return the upper 64 of the 128 bits of a product."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    x_low, x_high, y_low, y_high = x & mask, x >> half, y & mask, y >> half
    middle = x_high * y_low + ((x_low * y_low) >> half)
    other = x_low * y_high + (middle & mask)
    high: np.uint64 = x_high * y_high + (middle >> half) + (other >> half)
    return high


def _spread_bits(_context: Any, _word: Any, _address: Any) -> Any:
    """Write 64 bits as signs: bytes in little-endian order, in each the highest first."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word, address = arguments
        signs, bits = (ir.VectorType(t, 64) for t in (ir.FloatType(), ir.IntType(1)))
        is_plus = builder.bitcast(_in_other_order(builder, word), bits)
        plus, minus = (ir.Constant(signs, [sign] * 64) for sign in (1.0, -1.0))
        pointer = builder.inttoptr(address, signs.as_pointer())
        builder.store(builder.select(is_plus, plus, minus), pointer, align=4)
        return context.get_dummy_value()

    return void(uint64, int64), generate


def _gather_bits(_context: Any, _address: Any) -> Any:
    """Return 64 signs as bits, in the same order; 1 for 0 and above."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(ir.FloatType(), 64)
        pointer = builder.inttoptr(arguments[0], kind.as_pointer())
        values, zeros = builder.load(pointer, align=4), ir.Constant(kind, [0.0] * 64)
        bits = builder.bitcast(
            builder.fcmp_ordered(">=", values, zeros), ir.IntType(64)
        )
        return _in_other_order(builder, bits)

    return uint64(int64), generate


def _in_other_order(builder: Any, word: Any) -> Any:
    """Emit the reversal of the bits of every byte: vectors have the lowest first."""
    return builder.bswap(builder.bitreverse(word))


_write_signs: Final = intrinsic(_spread_bits)
_read_signs: Final = intrinsic(_gather_bits)


@_inlined
def _pack(a: Floats, code: npt.NDArray[np.uint8]) -> None:
    """Write the signs of a as bits, the first in the highest; 1 for 0 and above."""
    n_words, address = len(code) // 8, a.ctypes.data
    words = code[: 8 * n_words].view(np.uint64)
    for i in range(n_words):
        words[i] = _read_signs(address + 4 * 64 * i)
    for i in range(8 * n_words, len(code)):
        byte = 0
        for k in range(8):
            byte = (byte << 1) | (a[8 * i + k] >= 0)
        code[i] = byte


# `measure_before` and `measure_after` take the column of each sum as arguments, in the order
# of these names; see `trajstore.format.arrays.table_columns`.
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
# Offsets, sizes and layer_of_block of `trajstore.format.layout.Layout`.
_PLACES: Final = (_INTEGERS, _INTEGERS, _INTEGERS)
_BEFORE: Final = (
    *(_INTEGERS, _INTEGERS, *_PLACES, _ROWS, int64[:, ::1]),
    *(_SUMS, _INTEGERS, int64[:, ::1]),
    *(int64, _FLOATS, _FLOATS, _FLOATS, _FLOATS, _FLOATS, _FOLDS),
)
_AFTER: Final = (
    *(_INTEGERS, *_PLACES, _ROWS),
    *(_SUMS, _INTEGERS, int64[:, ::1]),
)


@_inlined
def _measure_block_before(
    gradient_address: int,
    parameter_address: int,
    inside: int,
    start: int,
    n: int,
    rows: Floats,
    past: Integers,
    vector: Floats,
    sums: Doubles,
    columns: Integers,
    basis_columns: Integers,
) -> None:
    """Measure n elements starting at `start`; the first is element `inside` of its tensor."""
    stop = start + n
    previous, displacement = rows[0, start:stop], rows[1, start:stop]
    anchor = rows[2, start:stop]
    parameter = _elements(parameter_address, inside, n)
    _subtract(parameter, anchor, displacement)
    if gradient_address == 0:
        previous[:] = 0
    else:
        gradient = _elements(gradient_address, inside, n)
        sums[columns[0]] += _product(gradient, previous)
        previous[:] = gradient
        square, product = _products(gradient, displacement, gradient)
        sums[columns[1]] += square
        sums[columns[2]] += product
    sums[columns[3]] += _product(displacement, displacement)
    vector[:] = 0
    for i in range(basis_columns.shape[1]):
        if i == 0:
            of_gradient, of_displacement = _products(previous, displacement, anchor)
        else:
            # The anchor less an earlier one is the sum of the codes between.
            for k in range((1 << i) >> 2, min((1 << i) >> 1, past.shape[1])):
                scale = _elements(past[1, k], start // BLOCK, 1)[0]
                _add_decoded(_codes(past[0, k], start, n), scale, vector)
            of_gradient, of_displacement = _products(previous, displacement, vector[:n])
        sums[basis_columns[0, i]] += of_gradient
        sums[basis_columns[1, i]] += of_displacement


@_inlined
def _fold_block(
    start: int,
    stop: int,
    rows: Floats,
    width: int,
    sketch_columns: Floats,
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
        start += n


@_compiled(int64, _INTEGERS, *_BEFORE)
def measure_before(
    part: int,
    bounds: Integers,  # (part + 1,): blocks of the vector with which parts begin and end
    gradients: Integers,  # (layer,): addresses of float32 elements; 0 for zeros
    parameters: Integers,  # (layer,): addresses of float32 elements
    offsets: Integers,
    sizes: Integers,
    layer_of_block: Integers,
    rows: Floats,  # (3, size): last gradient, overwritten; displacement, written; anchor
    past: Integers,  # (2, code): addresses of codes and scales, see `past_anchors`
    sums: Doubles,  # (part, layer, column): products are added to it
    columns: Integers,  # of `PRODUCTS` in `sums`
    basis_columns: Integers,  # (2, basis): of `BASIS_PRODUCTS` in `sums`
    width: int,  # length of a row of the fold; 0 for no folds
    sketch_columns: Floats,  # column sequences, see `Fold.column_sequence`
    probe_columns: Floats,
    probe_signs: Floats,  # (row,): row signs of the probes
    row_signs: Floats,  # (row,): row signs of the sketch
    weights: Floats,  # (layer,): of the sketch
    folds: Floats,  # (part, 3, bucket): of gradient and displacement, and for the sketch
) -> None:
    """Measure gradients and parameters in the blocks of one part."""
    vector = np.empty(BLOCK, np.float32)
    folds[part, :2, : min(width, BLOCK * len(layer_of_block))] = 0
    # The last is rotated later, and then full.
    folds[part, 2] = 0
    for block in range(bounds[part], bounds[part + 1]):
        layer = layer_of_block[block]
        start = block * BLOCK
        inside = start - offsets[layer]
        n = min(BLOCK, sizes[layer] - inside)
        _measure_block_before(
            gradients[layer],
            parameters[layer],
            inside,
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
                start + n,
                rows,
                width,
                sketch_columns,
                probe_columns,
                probe_signs,
                row_signs,
                weights[layer],
                folds[part],
            )


@_compiled(_INTEGERS, types.Tuple(_BEFORE), in_threads=True)
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
    columns: Integers,  # of `UPDATES` in `sums`
    checks: Integers,  # (part, layer): sums of the parameters' bits are added to it
) -> None:
    """Measure the update in the blocks of one part; `measure_before` has run."""
    update = np.empty(BLOCK, np.float32)
    for block in range(bounds[part], bounds[part + 1]):
        layer = layer_of_block[block]
        start = block * BLOCK
        inside = start - offsets[layer]
        n = min(BLOCK, sizes[layer] - inside)
        parameter = _elements(parameters[layer], inside, n)
        displacement = rows[1, start : start + n]
        # Near the anchor x - r is exact, and so is the difference of two of them.
        _subtract(parameter, rows[2, start : start + n], update)
        _subtract(update[:n], displacement, update)
        square, product = _products(update, displacement, update[:n])
        sums[part, layer, columns[0]] += square
        sums[part, layer, columns[1]] += product
        checks[part, layer] += _sum_of_bits(parameter.view(np.int32), inside)


@_compiled(_INTEGERS, types.Tuple(_AFTER), in_threads=True)
def measure_after_in_parts(bounds: Integers, arguments: Any) -> None:
    """Run `measure_after` for all parts, each in a thread of its own."""
    for part in prange(len(bounds) - 1):
        measure_after(part, bounds, *arguments)


@_compiled(_SUMS, int64, _ROWS)
def add_up(sums: Doubles, first: int, table: Floats) -> None:
    """Add sums (part, layer, column) to the first part; write them to columns of a table."""
    for part in range(1, len(sums)):
        sums[0] += sums[part]
    table[:, first : first + sums.shape[2]] = sums[0]


@_compiled(_ROWS, int64, float64[::1])
def add_column(table: Floats, column: int, total: Doubles) -> None:
    """Add a column of a table, (layer, quantity), to a total, (layer,)."""
    for layer in range(len(total)):
        total[layer] += table[layer, column]


@_compiled(_INTEGERS, *_PLACES, _ROWS)
def subtract_anchor(
    parameters: Integers,
    offsets: Integers,
    sizes: Integers,
    layer_of_block: Integers,
    rows: Floats,
) -> None:
    """Write the displacement; arguments as in `measure_before`."""
    for block in range(len(layer_of_block)):
        layer = layer_of_block[block]
        start = block * BLOCK
        inside = start - offsets[layer]
        n = min(BLOCK, sizes[layer] - inside)
        _subtract(
            _elements(parameters[layer], inside, n),
            rows[2, start : start + n],
            rows[1, start : start + n],
        )


@_compiled(_FLOATS, int64, _FLOATS, _FLOATS, _FLOATS)
def fold(
    vector: Floats, width: int, columns: Floats, row_signs: Floats, out: Floats
) -> None:
    """Add the fold of a vector, (size,), to `out`, (bucket,); see `sketch.fold`."""
    for row in range(len(row_signs)):
        part = vector[row * width : (row + 1) * width]
        signs = columns[SHIFT * row :]
        _fold_one(part, signs, row_signs[row], out)


@_compiled(uint64, uint64, uint64, _FLOATS)
def draw_signs(seed: int, role: int, step: int, signs: Floats) -> None:
    """Draw the `sketch.signs.random_signs` of a step; their number is a multiple of 64."""
    words, address = np.empty(4, np.uint64), signs.ctypes.data
    for i in range(0, len(signs), 256):
        _philox(np.uint64(i // 256 + 1), step, seed, role, words)
        for k in range(min(4, (len(signs) - i) // 64)):
            _write_signs(words[k], address + 4 * (i + 64 * k))


@_compiled(_FOLDS, int64, _ROWS, _ROWS)
def probe(
    folds: Floats,  # (part, at least vector, bucket): parts are added up
    filled: int,  # buckets of the first fold that may differ from 0
    signs: Floats,  # (row, probe): fixed signs of the second fold
    out: Floats,  # (vector, at least probe): overwritten
) -> None:
    """Fold first folds again, see `trajstore.sketch.probes`."""
    length = signs.shape[1]
    out[:] = 0
    for part in range(len(folds)):
        for vector in range(len(out)):
            for row in range(-(-filled // length)):
                start = row * length
                n = min(length, filled - start)
                _add_signed(
                    folds[part, vector, start : start + n],
                    signs[row, :n],
                    out[vector, :n],
                )


@_compiled(_FOLDS, int64, _FLOATS, int64, uint8[::1], _FLOATS)
def sketch(
    folds: Floats,  # (part, fold, bits): the last fold of every part; part 0 is overwritten
    filled: int,  # buckets of a fold that may differ from 0
    signs: Floats,  # (bits,): random signs of the rotation
    block: int,  # length of a Hadamard block
    code: npt.NDArray[np.uint8],  # (bits / 8,): overwritten
    scales: Floats,  # (block,): overwritten
) -> None:
    """Rotate a fold and keep its signs; see `sketch.rotation` and `sketch.onebit`."""
    buckets = folds[0, -1]
    for part in range(1, len(folds)):
        buckets[:filled] += folds[part, -1, :filled]
    half = len(buckets) // 2
    scale = np.float32(1 / np.sqrt(block))
    _multiply(buckets[:filled], signs, scale)
    for start in range(0, filled, block):
        _hadamard(buckets[start : start + block], min(block, filled - start))
    _multiply(buckets[:half], signs[half:], scale)
    _multiply(buckets[half:], signs[:half], scale)
    for i in range(len(scales)):
        part = buckets[i * block : (i + 1) * block]
        _hadamard(part, block)
        energy, magnitude = _norms(part)
        scales[i] = energy / magnitude if magnitude != 0 else 0
    _pack(buckets, code)
