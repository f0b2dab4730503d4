"""Decode sketches in compiled loops, for analyses of many of them.

The results equal those of `trajstore.sketch.sketch.Sketch.decode` up to rounding. Numba compiles the
loops when this module is first imported, which takes seconds, and keeps them on disk.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import float32, int64, types, uint8, uint64, void
from numba.extending import intrinsic

from trajstore.sketch.compiling import compiled
from trajstore.sketch.philox import random_block

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_LANES: Final = 16
"""Number of elements in a vector of LLVM."""

_BLOCK: Final = _LANES * _LANES
"""Number of elements that are transformed in registers."""

_FLOATS: Final = float32[::1]
_BYTES: Final = types.Array(uint8, 1, "C", readonly=True)


def _butterflies_of(
    builder: Any, rows: list[Any], strides: Sequence[int] = (1, 2, 4, 8)
) -> None:
    """Apply four levels of the Hadamard transform, not normalised, to 16 vectors in place."""
    for stride in strides:
        for i in range(_LANES):
            if not i & stride:
                a, b = rows[i], rows[i + stride]
                rows[i], rows[i + stride] = builder.fadd(a, b), builder.fsub(a, b)


def _places(builder: Any, start: Any, stride: Any) -> list[Any]:
    """Return pointers to 16 vectors at addresses `stride` bytes apart."""
    vector = ir.VectorType(ir.FloatType(), _LANES)
    steps = [builder.mul(stride, ir.Constant(start.type, i)) for i in range(_LANES)]
    addresses = [builder.add(start, step) for step in steps]
    return [builder.inttoptr(a, vector.as_pointer()) for a in addresses]


def _emit_columns(_context: Any, _address: Any, _stride: Any) -> Any:
    """Apply four levels of the transform to the columns of 16 vectors, `stride` bytes apart."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        places = _places(builder, *arguments)
        rows = [builder.load(place, align=4) for place in places]
        # The order of the levels is that of `_butterflies`, and so are the rounding errors.
        _butterflies_of(builder, rows, (2, 1, 8, 4))
        for row, place in zip(rows, places, strict=True):
            builder.store(row, place, align=4)
        return context.get_dummy_value()

    return void(int64, int64), generate_code


def _within(builder: Any, row: Any) -> Any:
    """Emit the transform of the elements of one vector."""
    numbers = ir.VectorType(ir.IntType(32), _LANES)
    for stride in (1, 2, 4, 8):
        lanes = range(_LANES)
        partner = ir.Constant(numbers, [i ^ stride for i in lanes])
        signs = ir.Constant(row.type, [-1.0 if i & stride else 1.0 for i in lanes])
        swapped = builder.shuffle_vector(row, row, partner)
        row = builder.fadd(swapped, builder.fmul(row, signs))
    return row


def _signed(builder: Any, bits: Any, value: Any) -> Any:
    """Return a value with the signs of 16 bits at an address, highest bit first: minus for 0."""
    number = ir.IntType(32)
    floats = ir.VectorType(ir.FloatType(), _LANES)
    pair = ir.VectorType(ir.IntType(8), 2)
    two = builder.load(builder.inttoptr(bits, pair.as_pointer()), align=1)
    lanes = [i // 8 for i in range(_LANES)]
    byte = builder.shuffle_vector(
        two, two, ir.Constant(ir.VectorType(number, _LANES), lanes)
    )
    masks = ir.Constant(byte.type, [1 << (7 - i % 8) for i in range(_LANES)])
    is_plus = builder.icmp_unsigned("==", builder.and_(byte, masks), masks)
    zeros = ir.Constant(ir.VectorType(number, _LANES), [0] * _LANES)

    def repeated(scalar: Any) -> Any:
        undefined = ir.Constant(floats, ir.Undefined)
        one = builder.insert_element(undefined, scalar, ir.Constant(number, 0))
        return builder.shuffle_vector(one, undefined, zeros)

    return builder.select(is_plus, repeated(value), repeated(builder.fneg(value)))


def _rows_of(builder: Any, bits: Any, value: Any) -> list[Any]:
    """Return 16 vectors of a value with the signs of 256 bits at an address."""
    steps = [ir.Constant(bits.type, 2 * i) for i in range(_LANES)]
    return [_signed(builder, builder.add(bits, step), value) for step in steps]


def _emit_first(_context: Any, _bits: Any, _value: Any, _address: Any) -> Any:
    """Write the transform of a value with the signs of `_BLOCK` bits."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        bits, value, start = arguments
        rows = _rows_of(builder, bits, value)
        _butterflies_of(builder, rows)
        places = _places(builder, start, ir.Constant(start.type, 4 * _LANES))
        for row, place in zip(rows, places, strict=True):
            builder.store(_within(builder, row), place, align=4)
        return context.get_dummy_value()

    return void(int64, float32, int64), generate_code


def _emit_second(_context: Any, _bits: Any, _value: Any, _address: Any) -> Any:
    """Multiply `_BLOCK` elements by a value with the signs of bits, and transform them."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        bits, value, start = arguments
        places = _places(builder, start, ir.Constant(start.type, 4 * _LANES))
        factors = _rows_of(builder, bits, value)
        rows = [
            builder.fmul(builder.load(place, align=4), factor)
            for place, factor in zip(places, factors, strict=True)
        ]
        _butterflies_of(builder, rows)
        for row, place in zip(rows, places, strict=True):
            builder.store(_within(builder, row), place, align=4)
        return context.get_dummy_value()

    return void(int64, float32, int64), generate_code


def _emit_multiply(_context: Any, _bits: Any, _address: Any, _out: Any) -> Any:
    """Write 16 elements at an address with the signs of bits."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        bits, start, out = arguments
        vector = ir.VectorType(ir.FloatType(), _LANES)
        signs = _signed(builder, bits, ir.Constant(ir.FloatType(), 1.0))
        values = builder.load(builder.inttoptr(start, vector.as_pointer()), align=4)
        place = builder.inttoptr(out, vector.as_pointer())
        builder.store(builder.fmul(values, signs), place, align=4)
        return context.get_dummy_value()

    return void(int64, int64, int64), generate_code


_transform_columns: Final = intrinsic(_emit_columns)
_transform_signs: Final = intrinsic(_emit_first)
_transform_signed: Final = intrinsic(_emit_second)
_multiply: Final = intrinsic(_emit_multiply)


@compiled(inline="never")
def _butterflies(a: Floats, b: Floats, c: Floats, d: Floats) -> None:
    """Apply two levels of the transform to four parts."""
    # Arrays of their own are vectorised; parts of one array may overlap.
    for i in range(len(a)):
        ac, bd = a[i] + c[i], b[i] + d[i]
        a_c, b_d = a[i] - c[i], b[i] - d[i]
        a[i] = ac + bd
        b[i] = ac - bd
        c[i] = a_c + b_d
        d[i] = a_c - b_d


@compiled(inline="never")
def _last_butterflies(a: Floats, b: Floats) -> None:
    """Apply one level of the transform to two parts."""
    for i in range(len(a)):
        total, difference = a[i] + b[i], a[i] - b[i]
        a[i] = total
        b[i] = difference


@compiled(inline="never")
def _across_blocks(a: Floats) -> None:
    """Complete the Hadamard transform of elements whose blocks are transformed, in place."""
    n, s, address = len(a), _BLOCK, a.ctypes.data
    while _LANES * s <= n:
        for i in range(0, n, _LANES * s):
            for j in range(i, i + s, _LANES):
                _transform_columns(address + 4 * j, 4 * s)
        s *= _LANES
    while 4 * s <= n:
        for i in range(0, n, 4 * s):
            first, third = a[i : i + s], a[i + 2 * s : i + 3 * s]
            second, fourth = a[i + s : i + 2 * s], a[i + 3 * s : i + 4 * s]
            _butterflies(first, second, third, fourth)
        s *= 4
    if s < n:
        _last_butterflies(a[:s], a[s:])


@compiled(void(_BYTES, float32, _BYTES, _FLOATS, _FLOATS))
def decode_signs(
    code: Bytes,  # (number / 8,): the signs of the sketch
    scale: np.float32,
    rotation: Bytes,  # (number / 8,): random bits of the rotation
    numbers: Floats,  # (number,): overwritten
    out: Floats,  # (width,): receives the folded gradient
) -> None:
    """Decode one sketch of one block; it has a power of two of numbers, at least 512."""
    n, half = len(numbers), len(numbers) // 2
    norm = np.float32(1 / np.sqrt(n))
    signs, bits, address = code.ctypes.data, rotation.ctypes.data, numbers.ctypes.data
    for i in range(0, n, _BLOCK):
        _transform_signs(signs + i // 8, scale * norm, address + 4 * i)
    _across_blocks(numbers)
    # The signs of the second round are those of the first with their halves swapped.
    for i in range(0, n, _BLOCK):
        swapped = i + half if i < half else i - half
        _transform_signed(bits + swapped // 8, norm, address + 4 * i)
    _across_blocks(numbers)
    whole = len(out) // _LANES * _LANES
    for i in range(0, whole, _LANES):
        _multiply(bits + i // 8, address + 4 * i, out.ctypes.data + 4 * i)
    for i in range(whole, len(out)):
        is_plus = rotation[i // 8] >> (7 - i % 8) & 1
        out[i] = numbers[i] if is_plus else -numbers[i]


@compiled(void(uint64, uint64, uint64, uint64[::1]))
def random_words(
    seed: np.uint64,
    role: np.uint64,
    step: np.uint64,
    out: npt.NDArray[np.uint64],  # (word,), a multiple of four words
) -> None:
    """Write the words that `trajstore.sketch.signs.random_bytes` draws."""
    for i in range(0, len(out), 4):
        a, b, c, d = random_block(np.uint64(i // 4 + 1), step, seed, role)
        out[i], out[i + 1], out[i + 2], out[i + 3] = a, b, c, d


@compiled(
    void(
        types.Array(uint8, 2, "C", readonly=True),
        types.Array(float32, 1, "C", readonly=True),
        types.Array(int64, 1, "C", readonly=True),
        uint64,
        uint64,
        float32[:, ::1],
        float32[:, ::1],
    )
)
def decode_sketches(
    codes: Bytes,  # (step, number / 8): the signs of the sketches
    scales: Floats,  # (step,)
    steps: npt.NDArray[np.int64],  # (step,)
    seed: np.uint64,
    role: np.uint64,
    out: Floats,  # (step, width): receives the folded gradients
    row_signs: Floats,  # (step, row): receives the signs of the rows
) -> None:
    """Draw the random signs of steps, and `decode_signs` of their sketches."""
    n_bytes, n_rows = codes.shape[1], row_signs.shape[1]
    n_words = (n_bytes + (n_rows + 7) // 8 + 7) // 8
    words = np.empty((n_words + 3) // 4 * 4, np.uint64)
    drawn, numbers = words.view(np.uint8), np.empty(8 * n_bytes, np.float32)
    for i in range(len(steps)):
        random_words(seed, role, np.uint64(steps[i]), words)
        decode_signs(codes[i], scales[i], drawn[:n_bytes], numbers, out[i])
        for j in range(n_rows):
            is_plus = drawn[n_bytes + j // 8] >> (7 - j % 8) & 1
            row_signs[i, j] = 1.0 if is_plus else -1.0
