"""Compiled loops for CPUs that code the numbers of a sketch with one or several bits each.

The results equal those of `trajstore.sketch` up to rounding.
"""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import float32, int32, int64, uint8, void
from numba.extending import intrinsic

from trajstore.sketch.levels import GUIDED, N_CELLS
from trajstore.sketch.onebit import LEAST_SCALE
from trajstore.tracking.backends.cpu.compiling import (
    compiled_when_called,
    inlined,
    loop,
)
from trajstore.tracking.backends.cpu.sketching import reverse_bits_in_bytes
from trajstore.tracking.backends.cpu.views import address_of, part_of

Floats = npt.NDArray[np.float32]
Levels = npt.NDArray[np.int32]

LEAST_ENERGY: Final = 1e-33
"""Sums of up to 2^16 squares that are larger have not lost digits in float32."""

DENSE: Final = np.float32(4)
"""Magnitude of numbers up to which every cell of the guide has at least four levels of 16 bits."""

_FLOATS, _LEVELS = float32[::1], int32[::1]


@loop
def _energy_and_magnitude(a: Floats) -> tuple[np.float64, np.float32]:
    """Return |a|^2, in float64 where that leaves the range of float32, and the sum of |a_i|."""
    energy = magnitude = np.float32(0)
    for i in range(len(a)):
        energy += a[i] * a[i]
        magnitude += abs(a[i])
    if LEAST_ENERGY < energy < np.inf or magnitude == 0:
        return np.float64(energy), magnitude
    wide = np.float64(0)
    for i in range(len(a)):
        wide += np.float64(a[i]) * np.float64(a[i])
    return wide, magnitude


@inlined
def _scale(energy: np.float64, product: np.float32 | np.float64) -> np.float64:
    """Return the scale of a code, NaN if its numbers are too small or too large for float32."""
    if energy == 0:
        return np.float64(0)
    scale = energy / np.float64(product)
    return scale if scale >= LEAST_SCALE else np.float64(np.nan)


def _gather_bits(n: int) -> Any:
    """Return a function for kernels that writes n signs as bits: 1 for numbers >= 0, else 0."""

    def infer_type(_context: Any, _address: Any, _target: Any) -> Any:
        return void(int64, int64), generate_code

    def generate_code(
        context: Any, builder: Any, _signature: Any, arguments: Any
    ) -> Any:
        address, target = arguments
        vector_type, word = ir.VectorType(ir.FloatType(), n), ir.IntType(n)
        pointer = builder.inttoptr(address, vector_type.as_pointer())
        values = builder.load(pointer, align=4)
        zeros = ir.Constant(vector_type, [0.0] * n)
        bits = builder.bitcast(builder.fcmp_ordered(">=", values, zeros), word)
        pointer = builder.inttoptr(target, word.as_pointer())
        builder.store(reverse_bits_in_bytes(builder, bits), pointer, align=1)
        return context.get_dummy_value()

    return intrinsic(infer_type)


_pack_word: Final = _gather_bits(64)
_pack_byte: Final = _gather_bits(8)


@inlined
def _pack(a: Floats, code: npt.NDArray[np.uint8]) -> None:
    """Write the signs of a as bits, 1 for numbers >= 0; the first number has the highest bit."""
    n_words, address, target = len(code) // 8, address_of(a), address_of(code)
    for i in range(n_words):
        _pack_word(address + 4 * 64 * i, target + 8 * i)
    for i in range(8 * n_words, len(code)):
        _pack_byte(address + 4 * 8 * i, target + i)


@compiled_when_called(_FLOATS, uint8[::1], _FLOATS)
def code_signs(
    numbers: Floats,  # (number,)
    code: npt.NDArray[np.uint8],  # (number / 8,): overwritten
    scales: Floats,  # (block,): overwritten
) -> None:
    """Code numbers with one bit each, as `trajstore.sketch.onebit` does."""
    block = len(numbers) // len(scales)
    for i in range(len(scales)):
        part = part_of(numbers, i * block, block)
        energy, magnitude = _energy_and_magnitude(part)
        scales[i] = _scale(energy, magnitude)
    _pack(numbers, code)


@inlined
def _find_levels_of_2_bits(
    a: Floats, scale: np.float32, borders: Floats, found: Levels
) -> None:
    """Write how many of 3 borders do not exceed each number of a, times a scale."""
    for i in range(len(a)):
        number, level = a[i] * scale, np.int32(0)
        for k in range(3):
            level += np.int32(borders[k] <= number)
        found[i] = level


@inlined
def _find_levels_of_4_bits(
    a: Floats, scale: np.float32, borders: Floats, found: Levels
) -> None:
    """Write how many of 15 borders do not exceed each number of a, times a scale."""
    for i in range(len(a)):
        number, level = a[i] * scale, np.int32(0)
        for k in range(15):
            level += np.int32(borders[k] <= number)
        found[i] = level


@inlined
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


@inlined
def _product_with_levels(a: Floats, levels: Floats, found: Levels) -> np.float32:
    """Return the product of a with the levels that were found for it."""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * levels[found[i]]
    return total


@loop
def _energy_of_few(a: Floats) -> np.float64:
    """Return |a|^2 of a short vector; rounding in float32 would be the error of fine levels."""
    energy = np.float64(0)
    for i in range(len(a)):
        energy += np.float64(a[i]) * np.float64(a[i])
    return energy


@inlined
def _product_with_fine_levels(
    a: Floats, scale: np.float32, guide: Floats, levels: Floats, found: Levels
) -> np.float64:
    """Return `_product_with_levels` of 16 bits, whose levels are dense up to `DENSE`."""
    # Most of the table of levels would be read, which takes a quarter of the cache from training.
    # The guide gives a number's place between two borders, and so its distance from its level.
    # Within a cell, the count of borders is not a straight line: its slope falls like the density
    # of numbers of variance 3. At the place t in a cell of length u, a number x is above its place
    # on the line by x u^2 t (1 - t) / 6, which would make the product 4e-7 too large.
    half, last = np.float32(N_CELLS // 2), np.float32(N_CELLS - 1)
    cells_per_unit = np.float32(N_CELLS / 2 / GUIDED)
    unit = np.float32(2 * GUIDED / N_CELLS)
    bend = unit * unit / np.float32(6)
    total = np.float64(0)
    for i in range(len(a)):
        number = a[i] * scale
        place = number * cells_per_unit + half
        place = place if place > 0 else np.float32(0)
        place = min(last, place)
        cell = np.int32(place)
        low, inside = guide[cell], place - np.float32(cell)
        rise = guide[cell + 1] - low
        count = low + rise * inside
        level = number - (count - np.float32(found[i]) - np.float32(0.5)) * unit / rise
        level -= number * (bend * inside * (np.float32(1) - inside))
        is_rare = abs(number) > DENSE
        entry = levels[found[i] if is_rare else 0]
        total += np.float64(a[i]) * np.float64(entry if is_rare else level)
    return total


@inlined
def _pack_2_bits(found: Levels, code: npt.NDArray[np.uint8]) -> None:
    """Write the numbers of levels with 2 bits each, highest bit first."""
    for i in range(len(code)):
        first, second = found[4 * i] << 6, found[4 * i + 1] << 4
        code[i] = first | second | (found[4 * i + 2] << 2) | found[4 * i + 3]


@inlined
def _pack_4_bits(found: Levels, code: npt.NDArray[np.uint8]) -> None:
    """Write the numbers of levels with 4 bits each, highest bit first."""
    for i in range(len(code)):
        code[i] = (found[2 * i] << 4) | found[2 * i + 1]


@inlined
def _inverse_deviation(energy: np.float64, n: int) -> np.float32:
    """Return 1 over the root mean square of n numbers with this |a|^2, 1 if all of them are 0."""
    inverse = np.float32(1)
    if energy != 0:
        inverse = np.float32(1 / math.sqrt(energy / n))
    return inverse


@compiled_when_called(_FLOATS, _FLOATS, _LEVELS, _FLOATS, uint8[::1], _FLOATS)
def code_2_bits(
    levels: Floats,  # (2^bits,)
    borders: Floats,  # (2^bits - 1,)
    found: Levels,  # (number,): memory for the numbers of levels; overwritten
    numbers: Floats,  # (number,)
    code: npt.NDArray[np.uint8],  # (bits * number / 8,): overwritten
    scales: Floats,  # (block,): overwritten
) -> None:
    """Code numbers with 2 bits each, as `trajstore.sketch.levels` does."""
    block = len(numbers) // len(scales)
    for i in range(len(scales)):
        part = part_of(numbers, i * block, block)
        found_here = part_of(found, i * block, block)
        energy, _ = _energy_and_magnitude(part)
        inverse = _inverse_deviation(energy, block)
        _find_levels_of_2_bits(part, inverse, borders, found_here)
        scales[i] = _scale(energy, _product_with_levels(part, levels, found_here))
    _pack_2_bits(found, code)


# A function of its own, because few recordings need both, and compiling takes long.
@compiled_when_called(_FLOATS, _FLOATS, _LEVELS, _FLOATS, uint8[::1], _FLOATS)
def code_4_bits(
    levels: Floats,
    borders: Floats,
    found: Levels,
    numbers: Floats,
    code: npt.NDArray[np.uint8],
    scales: Floats,
) -> None:
    """Code numbers with 4 bits each, as `trajstore.sketch.levels` does."""
    block = len(numbers) // len(scales)
    for i in range(len(scales)):
        part = part_of(numbers, i * block, block)
        found_here = part_of(found, i * block, block)
        energy, _ = _energy_and_magnitude(part)
        inverse = _inverse_deviation(energy, block)
        _find_levels_of_4_bits(part, inverse, borders, found_here)
        scales[i] = _scale(energy, _product_with_levels(part, levels, found_here))
    _pack_4_bits(found, code)


@compiled_when_called(_FLOATS, _FLOATS, _LEVELS, _FLOATS, _FLOATS)
def find_levels_of_8_bits(
    levels: Floats,
    guide: Floats,  # (cell,): see `trajstore.sketch.levels.guide`
    found: Levels,  # (number,): overwritten with the numbers of levels
    numbers: Floats,  # (number,)
    scales: Floats,  # (block,): overwritten
) -> None:
    """Find the levels of numbers that have 8 bits each, as `trajstore.sketch.levels` does."""
    block = len(numbers) // len(scales)
    for i in range(len(scales)):
        part = part_of(numbers, i * block, block)
        found_here = part_of(found, i * block, block)
        energy, _ = _energy_and_magnitude(part)
        inverse = _inverse_deviation(energy, block)
        _find_levels_from_guide(part, inverse, guide, found_here)
        scales[i] = _scale(energy, _product_with_levels(part, levels, found_here))


@compiled_when_called(_FLOATS, _FLOATS, _LEVELS, _FLOATS, _FLOATS)
def find_levels_of_16_bits(
    levels: Floats, guide: Floats, found: Levels, numbers: Floats, scales: Floats
) -> None:
    """Find the levels of numbers that have 16 bits each."""
    block = len(numbers) // len(scales)
    for i in range(len(scales)):
        part = part_of(numbers, i * block, block)
        found_here = part_of(found, i * block, block)
        energy = _energy_of_few(part)
        inverse = _inverse_deviation(energy, block)
        _find_levels_from_guide(part, inverse, guide, found_here)
        product = _product_with_fine_levels(part, inverse, guide, levels, found_here)
        scales[i] = _scale(energy, product)


def code_many_levels(
    bits: int,  # number of bits per number, 8 or 16
    levels: Floats,
    guide: Floats,
    found: Levels,
    numbers: Floats,
    code: npt.NDArray[np.uint8],  # (bits * number / 8,): overwritten
    scales: Floats,
) -> None:
    """Code numbers with 8 or 16 bits each, highest byte first."""
    find = find_levels_of_8_bits if bits == 8 else find_levels_of_16_bits
    find(levels, guide, found, numbers, scales)
    code.view(f">u{bits // 8}")[:] = found
