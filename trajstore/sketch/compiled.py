"""Decode sketches in compiled loops, for analyses of many of them.

The results equal those of `trajstore.sketch.sketch.Sketch.decode` up to rounding. Numba compiles the
loops when this module is first imported, which takes seconds, and keeps them on disk.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import float32, int64, types, uint8, void
from numba.extending import intrinsic

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
F = TypeVar("F", bound=Callable[..., Any])

_LANES: Final = 16
"""Number of elements in a vector of LLVM."""

_BLOCK: Final = _LANES * _LANES
"""Number of elements that are transformed in registers."""

_FLOATS: Final = float32[::1]
_BYTES: Final = types.Array(uint8, 1, "C", readonly=True)


def _compiled(*signature: Any, **options: Any) -> Callable[[F], F]:
    """Compile a function, and keep the result on disk if there is a place for it."""
    options |= {"nogil": True, "fastmath": {"contract", "nsz"}}

    def decorated(function: F) -> F:
        try:
            result = numba.njit(*signature, cache=True, **options)(function)
        except RuntimeError:
            result = numba.njit(*signature, **options)(function)
        return cast("F", result)

    return decorated


def _emit_transform(_context: Any, _address: Any) -> Any:
    """Apply the Hadamard transform, not normalised, to `_BLOCK` elements at an address."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        vector = ir.VectorType(ir.FloatType(), _LANES)
        [start] = arguments
        places = [
            builder.inttoptr(
                builder.add(start, ir.Constant(start.type, 4 * _LANES * i)),
                vector.as_pointer(),
            )
            for i in range(_LANES)
        ]
        rows = [builder.load(place, align=4) for place in places]
        for stride in (1, 2, 4, 8):
            for i in range(_LANES):
                if not i & stride:
                    a, b = rows[i], rows[i + stride]
                    rows[i], rows[i + stride] = builder.fadd(a, b), builder.fsub(a, b)
        for i, place in enumerate(places):
            builder.store(_within(builder, rows[i]), place, align=4)
        return context.get_dummy_value()

    return void(int64), generate_code


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


def _emit_spread(_context: Any, _byte: Any, _value: Any, _address: Any) -> Any:
    """Write a value with the signs of eight bits, highest bit first: minus for 0."""

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        byte, value, address = arguments
        floats, bytes_ = (ir.VectorType(t, 8) for t in (ir.FloatType(), ir.IntType(8)))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8)

        def repeated(scalar: Any, vector: Any) -> Any:
            undefined = ir.Constant(vector, ir.Undefined)
            one = builder.insert_element(
                undefined, scalar, ir.Constant(ir.IntType(32), 0)
            )
            return builder.shuffle_vector(one, undefined, zeros)

        masks = ir.Constant(bytes_, [1 << (7 - i) for i in range(8)])
        chosen = builder.and_(repeated(byte, bytes_), masks)
        is_plus = builder.icmp_unsigned("==", chosen, masks)
        plus = repeated(value, floats)
        minus = repeated(builder.fneg(value), floats)
        place = builder.inttoptr(address, floats.as_pointer())
        builder.store(builder.select(is_plus, plus, minus), place, align=4)
        return context.get_dummy_value()

    return void(uint8, float32, int64), generate_code


_transform_block: Final = intrinsic(_emit_transform)
_spread_byte: Final = intrinsic(_emit_spread)


@_compiled(inline="never")
def _spread(code: Bytes, value: np.float32, out: Floats) -> None:
    """Write a value with the signs of all bits."""
    address = out.ctypes.data
    for i in range(len(code)):
        _spread_byte(code[i], value, address + 32 * i)


@_compiled(inline="never")
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


@_compiled(inline="never")
def _last_butterflies(a: Floats, b: Floats) -> None:
    """Apply one level of the transform to two parts."""
    for i in range(len(a)):
        total, difference = a[i] + b[i], a[i] - b[i]
        a[i] = total
        b[i] = difference


@_compiled(inline="never")
def _multiply(a: Floats, b: Floats, scale: np.float32, out: Floats) -> None:
    for i in range(len(out)):
        out[i] = a[i] * b[i] * scale


@_compiled(inline="never")
def _hadamard(a: Floats) -> None:
    """Apply the Hadamard transform, not normalised, in place."""
    n, s, address = len(a), _BLOCK, a.ctypes.data
    for i in range(0, n, _BLOCK):
        _transform_block(address + 4 * i)
    while 4 * s <= n:
        for i in range(0, n, 4 * s):
            first, third = a[i : i + s], a[i + 2 * s : i + 3 * s]
            second, fourth = a[i + s : i + 2 * s], a[i + 3 * s : i + 4 * s]
            _butterflies(first, second, third, fourth)
        s *= 4
    if s < n:
        _last_butterflies(a[:s], a[s:])


@_compiled(void(_BYTES, float32, _BYTES, _FLOATS, _FLOATS, _FLOATS))
def decode_signs(
    code: Bytes,  # (number / 8,): the signs of the sketch
    scale: np.float32,
    rotation: Bytes,  # (number / 8,): random bits of the rotation
    signs: Floats,  # (number,): overwritten
    numbers: Floats,  # (number,): overwritten
    out: Floats,  # (width,): receives the folded gradient
) -> None:
    """Decode one sketch of one block; it has a power of two of numbers, at least 256."""
    n, half = len(numbers), len(numbers) // 2
    norm = np.float32(1 / np.sqrt(n))
    _spread(code, scale * norm, numbers)
    _hadamard(numbers)
    _spread(rotation, np.float32(1), signs)
    _multiply(numbers[:half], signs[half:], norm, numbers[:half])
    _multiply(numbers[half:], signs[:half], norm, numbers[half:])
    _hadamard(numbers)
    _multiply(numbers, signs, np.float32(1), out)
