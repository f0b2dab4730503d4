"""Compiled loops that pack the last gradient and the displacement into one word per element.

The lower `GRADIENT_BITS` bits of a word are the gradient, the upper ones the displacement, as integers
times a power of two for each range of elements. A displacement x - r that is read again differs from
the exact one by e; <e, e> and <e, x - r - e> are kept, so that products with the update lack no more
than its product with e. Products with the last gradient are multiplied by a factor that makes them
right for the gradient itself: what two almost equal gradients differ by is not lost in rounding.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import float32, int32
from numba.extending import intrinsic

from trajstore.tracking.backends.cpu.block_loops import (
    LEAST_CAREFREE,
    MOST_CAREFREE,
    update_products,
)
from trajstore.tracking.backends.cpu.compiling import inlined, loop

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.int32]

WORD_BITS: Final = 32
GRADIENT_BITS: Final = 13
DISPLACEMENT_BITS: Final = WORD_BITS - GRADIENT_BITS

MANTISSA_BITS: Final = 23
LEAST_EXPONENT: Final = 20
"""Smaller magnitudes than 2^(LEAST_EXPONENT - 127) are not packed, but NaN."""
NAN_EXPONENT: Final = 255
"""Exponent of infinities and NaN."""

_ROUNDING: Final = 1.5 * 2**MANTISSA_BITS
"""Adding it rounds a small float to an integer, which the lower bits of the sum are."""
_CARRY: Final = 1 << (MANTISSA_BITS - GRADIENT_BITS + 1)
"""Added to a magnitude, it raises the exponent if rounding could."""


def _int32(value: int) -> Any:
    return ir.Constant(ir.IntType(32), value)


def _unpack_gradient(_context: Any, _word: Any) -> Any:
    """Return the lower bits of a word as a signed number."""

    def generate_code(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        shift = _int32(WORD_BITS - GRADIENT_BITS)
        number = builder.ashr(builder.shl(arguments[0], shift), shift)
        return builder.sitofp(number, ir.FloatType())

    return float32(int32), generate_code


def _unpack_displacement(_context: Any, _word: Any) -> Any:
    """Return the upper bits of a word as a signed number."""

    def generate_code(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        number = builder.ashr(arguments[0], _int32(GRADIENT_BITS))
        return builder.sitofp(number, ir.FloatType())

    return float32(int32), generate_code


def _pack(_context: Any, _gradient: Any, _displacement: Any) -> Any:
    """Return a word of two numbers, which are rounded to integers."""

    def generate_code(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        rounding = ir.Constant(ir.FloatType(), _ROUNDING)
        gradient, displacement = (
            builder.bitcast(builder.fadd(a, rounding, flags=("nsz",)), ir.IntType(32))
            for a in arguments
        )
        low = builder.and_(gradient, _int32((1 << GRADIENT_BITS) - 1))
        return builder.or_(builder.shl(displacement, _int32(GRADIENT_BITS)), low)

    return int32(float32, float32), generate_code


def _larger(_context: Any, _magnitude: Any, _number: Any) -> Any:
    """Return the larger one of a magnitude and that of a number, as the bits of a float."""

    # A maximum of floats would not be vectorised. NaN is larger than all other magnitudes.
    def generate_code(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        largest, number = arguments
        bits = builder.bitcast(number, ir.IntType(32))
        bits = builder.and_(bits, _int32(0x7FFFFFFF))
        return builder.select(builder.icmp_signed(">", bits, largest), bits, largest)

    return int32(int32, float32), generate_code


def _power(_context: Any, _exponent: Any) -> Any:
    """Return 2^(exponent - 127), or NaN for `NAN_EXPONENT`."""

    def generate_code(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        bits = builder.shl(arguments[0], _int32(MANTISSA_BITS))
        quiet = builder.select(
            builder.icmp_signed("==", arguments[0], _int32(NAN_EXPONENT)),
            _int32(1 << (MANTISSA_BITS - 1)),
            _int32(0),
        )
        return builder.bitcast(builder.or_(bits, quiet), ir.FloatType())

    return float32(int32), generate_code


_gradient_of: Final = intrinsic(_unpack_gradient)
_displacement_of: Final = intrinsic(_unpack_displacement)
_word_of: Final = intrinsic(_pack)
_larger_magnitude: Final = intrinsic(_larger)
_power_of_two: Final = intrinsic(_power)


@loop
def unpack(
    words: Words,
    gradient_scale: np.float32,
    displacement_scale: np.float32,
    gradient: Floats,
    displacement: Floats,
) -> None:
    """Read the vectors of a range."""
    for i in range(len(words)):
        gradient[i] = _gradient_of(words[i]) * gradient_scale
        displacement[i] = _displacement_of(words[i]) * displacement_scale


@loop
def _magnitudes(a: Floats, b: Floats) -> tuple[np.int32, np.int32]:
    """Return the largest magnitude of each vector as the bits of a float."""
    largest_of_a = largest_of_b = np.int32(0)
    for i in range(len(a)):
        largest_of_a = _larger_magnitude(largest_of_a, a[i])
        largest_of_b = _larger_magnitude(largest_of_b, b[i])
    return largest_of_a, largest_of_b


@inlined
def _exponent(magnitude: np.int32, bits: int) -> np.int32:
    """Return the exponent of the scale of a vector with this largest magnitude."""
    exponent = (np.int64(magnitude) + _CARRY) >> MANTISSA_BITS
    # The largest number is a little less than 2^(bits - 1) times the scale.
    scale = exponent - (bits - 2)
    if magnitude == 0:
        scale = np.int64(LEAST_EXPONENT)
    elif exponent < LEAST_EXPONENT or exponent >= NAN_EXPONENT:
        scale = np.int64(NAN_EXPONENT)
    return np.int32(scale)


@inlined
def _reciprocal(exponent: np.int32) -> np.int32:
    """Return the exponent of the reciprocal of a scale."""
    opposite = 2 * 127 - np.int64(exponent)
    if exponent == NAN_EXPONENT:
        opposite = np.int64(NAN_EXPONENT)
    return np.int32(opposite)


@loop
def _pack_words(
    gradient: Floats,
    displacement: Floats,
    gradient_factor: np.float32,
    displacement_factor: np.float32,
    gradient_scale: np.float32,
    displacement_scale: np.float32,
    words: Words,
    rounded: Floats,
) -> tuple[np.float32, np.float32]:
    """Write vectors as words, and the displacement as it will be read."""
    # Returns |g|^2 and the product of the gradient with what will be read.
    square = product = np.float32(0)
    for i in range(len(words)):
        g = gradient[i]
        word = _word_of(g * gradient_factor, displacement[i] * displacement_factor)
        words[i] = word
        rounded[i] = _displacement_of(word) * displacement_scale
        square += g * g
        product += g * (_gradient_of(word) * gradient_scale)
    return square, product


@loop
def pack(
    gradient: Floats,
    displacement: Floats,
    words: Words,
    rounded: Floats,
) -> tuple[np.float32, np.float32, np.float64]:
    """Write the vectors of a range; return their scales, and the factor of products with the gradient."""
    # `rounded` is overwritten with the displacement as it will be read.
    of_gradient, of_displacement = _magnitudes(gradient, displacement)
    gradient_exponent = _exponent(of_gradient, GRADIENT_BITS)
    displacement_exponent = _exponent(of_displacement, DISPLACEMENT_BITS)
    gradient_scale = _power_of_two(gradient_exponent)
    displacement_scale = _power_of_two(displacement_exponent)
    square, product = _pack_words(
        gradient,
        displacement,
        _power_of_two(_reciprocal(gradient_exponent)),
        _power_of_two(_reciprocal(displacement_exponent)),
        gradient_scale,
        displacement_scale,
        words,
        rounded,
    )
    factor = np.float64(1)
    # Otherwise, the squares may have lost their digits.
    if product > LEAST_CAREFREE and square < MOST_CAREFREE:
        factor = np.float64(square) / np.float64(product)
    return gradient_scale, displacement_scale, factor


@inlined
def errors(
    parameter: Floats, anchor: Floats, rounded: Floats
) -> tuple[np.float64, np.float64]:
    """Return <e, e> and <e, x - r - e> of a range whose displacement is read as `rounded`."""
    # The same loop computes the same bits from the same numbers: a range that does not move has
    # an update of exactly 0.
    return update_products(parameter, anchor, rounded)
