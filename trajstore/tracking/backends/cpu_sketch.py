"""Compiled loops for CPUs that turn the folds of a step into its probes and its sketch.

They draw the random signs of a step, fold the folds again to probes, rotate a fold, and code its
numbers. The results equal those of `trajstore.sketch` up to rounding.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import float32, int64, uint8, uint64, void
from numba.extending import intrinsic

from trajstore.sketch.fold import SHIFT
from trajstore.sketch.levels import GUIDED, N_CELLS
from trajstore.sketch.onebit import LEAST_SCALE
from trajstore.tracking.backends.compiling import (
    compiled,
    compiled_when_called,
    inlined,
    loop,
)

Floats = npt.NDArray[np.float32]
Levels = npt.NDArray[np.int32]

_LANES: Final = 16
"""Number of elements in a vector register, for loops that are written with LLVM vectors."""

LEAST_ENERGY: Final = 1e-33
"""Sums of up to 2^16 squares that are larger have not lost digits in float32."""

_FLOATS, _ROWS, _FOLDS = float32[::1], float32[:, ::1], float32[:, :, ::1]


@loop
def _fold_vector(vector: Floats, signs: Floats, sign: np.float32, out: Floats) -> None:
    """Add a vector times column signs and a row sign to a fold."""
    for i in range(len(vector)):
        out[i] += sign * signs[i] * vector[i]


@loop
def _add_signed(a: Floats, signs: Floats, out: Floats) -> None:
    """Add a * signs to `out`."""
    for i in range(len(a)):
        out[i] += a[i] * signs[i]


@loop
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


@inlined
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


@loop
def _hadamard_of_2(a: Floats, b: Floats) -> None:
    """Apply one level of butterflies between two parts."""
    for i in range(len(a)):
        total, difference = a[i] + b[i], a[i] - b[i]
        a[i] = total
        b[i] = difference


@loop
def _hadamard_of_4(a: Floats, b: Floats, c: Floats, d: Floats) -> None:
    """Apply two levels of butterflies between four parts."""
    for i in range(len(a)):
        ac, bd = a[i] + c[i], b[i] + d[i]
        a_c, b_d = a[i] - c[i], b[i] - d[i]
        a[i] = ac + bd
        b[i] = ac - bd
        c[i] = a_c + b_d
        d[i] = a_c - b_d


@loop
def _norms(a: Floats) -> tuple[np.float32, np.float32]:
    """Return |a|^2 and the sum of the absolute values of a."""
    energy = magnitude = np.float32(0)
    for i in range(len(a)):
        energy += a[i] * a[i]
        magnitude += abs(a[i])
    return energy, magnitude


@loop
def _energy_in_doubles(a: Floats) -> np.float64:
    """Return |a|^2, computed in float64."""
    energy = np.float64(0)
    for i in range(len(a)):
        energy += np.float64(a[i]) * np.float64(a[i])
    return energy


@inlined
def _energy_and_magnitude(a: Floats) -> tuple[np.float64, np.float32]:
    """Return `_norms`, with |a|^2 in float64 where that leaves the range of float32."""
    energy, magnitude = _norms(a)
    if LEAST_ENERGY < energy < np.inf or magnitude == 0:
        return np.float64(energy), magnitude
    return _energy_in_doubles(a), magnitude


@inlined
def _scale(energy: np.float64, product: np.float32) -> np.float64:
    """Return the scale of a code, NaN if its numbers are too small or too large for float32."""
    if energy == 0:
        return np.float64(0)
    scale = energy / np.float64(product)
    return scale if scale >= LEAST_SCALE else np.float64(np.nan)


@inlined
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


@inlined
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


@inlined
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


@compiled(_FLOATS, int64, _FLOATS, _FLOATS, _FLOATS)
def fold(
    vector: Floats, width: int, columns: Floats, row_signs: Floats, out: Floats
) -> None:
    """Add the fold of a vector, (size,), to `out`, (bucket,); see `trajstore.sketch.fold`."""
    for row in range(len(row_signs)):
        part = vector[row * width : (row + 1) * width]
        signs = columns[SHIFT * row :]
        _fold_vector(part, signs, row_signs[row], out)


@compiled(uint64, uint64, uint64, _FLOATS)
def draw_signs(seed: int, role: int, step: int, signs: Floats) -> None:
    """Write the random signs of a step; see `trajstore.sketch.signs`."""
    # The number of signs is a multiple of 64.
    words, address = np.empty(4, np.uint64), signs.ctypes.data
    for i in range(0, len(signs), 256):
        _philox(np.uint64(i // 256 + 1), step, seed, role, words)
        for k in range(min(4, (len(signs) - i) // 64)):
            _write_signs(words[k], address + 4 * (i + 64 * k))


@compiled(_FOLDS, int64, _FLOATS, int64, int64, int64, _ROWS)
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


@compiled(_FOLDS, int64, _FLOATS, int64, int64)
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
        # An array expression would take seconds to compile.
        added = folds[part, -1]
        for i in range(filled):
            buckets[i] += added[i]
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


@compiled(_FLOATS, uint8[::1], _FLOATS)
def code_signs(
    numbers: Floats,  # (number,)
    code: npt.NDArray[np.uint8],  # (number / 8,): overwritten
    scales: Floats,  # (block,): overwritten
) -> None:
    """Code numbers with one bit each, as `trajstore.sketch.onebit` does."""
    block = len(numbers) // len(scales)
    for i in range(len(scales)):
        part = numbers[i * block : (i + 1) * block]
        energy, magnitude = _energy_and_magnitude(part)
        scales[i] = _scale(energy, magnitude)
    _pack(numbers, code)


@loop
def _find_levels_of_2_bits(
    a: Floats, scale: np.float32, borders: Floats, found: Levels
) -> None:
    """Write how many of 3 borders do not exceed each number of a, times a scale."""
    for i in range(len(a)):
        number, level = a[i] * scale, np.int32(0)
        for k in range(3):
            level += np.int32(borders[k] <= number)
        found[i] = level


@loop
def _find_levels_of_4_bits(
    a: Floats, scale: np.float32, borders: Floats, found: Levels
) -> None:
    """Write how many of 15 borders do not exceed each number of a, times a scale."""
    for i in range(len(a)):
        number, level = a[i] * scale, np.int32(0)
        for k in range(15):
            level += np.int32(borders[k] <= number)
        found[i] = level


@loop
def _find_levels_from_guide(
    a: Floats, scale: np.float32, guide: Floats, found: Levels
) -> None:
    """Write the level of each number of a, times a scale, up to a small part of a level."""
    half, last = np.float32(N_CELLS // 2), np.float32(N_CELLS - 1)
    cells_per_unit = np.float32(N_CELLS / 2 / GUIDED)
    for i in range(len(a)):
        number = a[i] * scale
        place = number * cells_per_unit + half
        # Not a number is in cell 0.
        place = place if place > 0 else np.float32(0)
        place = min(last, place)
        cell = np.int32(place)
        low, inside = guide[cell], place - np.float32(cell)
        found[i] = np.int32(low + (guide[cell + 1] - low) * inside)


@loop
def _product_with_levels(a: Floats, levels: Floats, found: Levels) -> np.float32:
    """Return the product of a with the levels that were found for it."""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * levels[found[i]]
    return total


@loop
def _pack_levels(found: Levels, bits: int, code: npt.NDArray[np.uint8]) -> None:
    """Write the numbers of levels with several bits each, highest bit first."""
    if bits == 16:
        words = code.view(np.uint16)
        for i in range(len(found)):
            words[i] = ((found[i] & 255) << 8) | (found[i] >> 8)
    elif bits == 8:
        for i in range(len(found)):
            code[i] = found[i]
    elif bits == 4:
        for i in range(len(code)):
            code[i] = (found[2 * i] << 4) | found[2 * i + 1]
    else:
        for i in range(len(code)):
            first, second = found[4 * i] << 6, found[4 * i + 1] << 4
            code[i] = first | second | (found[4 * i + 2] << 2) | found[4 * i + 3]


@compiled_when_called(_FLOATS, int64, _FLOATS, _FLOATS, _FLOATS, uint8[::1], _FLOATS)
def code_levels(
    numbers: Floats,  # (number,)
    bits: int,  # number of bits per number, at least 2
    levels: Floats,  # (2^bits,)
    borders: Floats,  # (2^bits - 1,)
    guide: Floats,  # (cell,): see `trajstore.sketch.levels.guide`
    code: npt.NDArray[np.uint8],  # (bits * number / 8,): overwritten
    scales: Floats,  # (block,): overwritten
) -> None:
    """Code numbers with several bits each, as `trajstore.sketch.levels` does."""
    block = len(numbers) // len(scales)
    found = np.empty(len(numbers), np.int32)
    for i in range(len(scales)):
        part = numbers[i * block : (i + 1) * block]
        found_here = found[i * block : (i + 1) * block]
        energy, _ = _energy_and_magnitude(part)
        inverse = np.float32(1)
        if energy != 0:
            inverse = np.float32(1 / np.sqrt(energy / block))
        if bits == 2:
            _find_levels_of_2_bits(part, inverse, borders, found_here)
        elif bits == 4:
            _find_levels_of_4_bits(part, inverse, borders, found_here)
        else:
            _find_levels_from_guide(part, inverse, guide, found_here)
        product = _product_with_levels(part, levels, found_here)
        scales[i] = _scale(energy, product)
    _pack_levels(found, bits, code)
