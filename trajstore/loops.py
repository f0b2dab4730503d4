"""Short loops over arrays, compiled for CPUs; what `trajstore.kernels` is made of.

Each touches few arrays, so that the compiler can tell them apart and vectorise.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba import types, void
from numba.extending import intrinsic

Floats = npt.NDArray[np.float32]

F = TypeVar("F", bound=Callable[..., Any])

REORDER: Final = frozenset({"reassoc", "contract", "nsz", "arcp"})
"""Freedom to vectorise sums; what is not finite is still respected."""


OPTIONS: Final = {"nogil": True, "cache": True, "fastmath": set(REORDER)}


def compiled(*signature: Any, in_threads: bool = False) -> Callable[[F], F]:
    """Compile a function for these types at once; `numba.prange` in threads if asked."""

    def decorate(function: F) -> F:
        options = OPTIONS | {"parallel": in_threads}
        return cast("F", numba.njit(void(*signature), **options)(function))

    return decorate


def inlined(function: F) -> F:
    """Compile a function together with those that call it."""
    return cast("F", numba.njit(**OPTIONS)(function))


def loop(function: F) -> F:
    """Compile a loop over few arrays, apart from its caller: so it is vectorised."""
    return cast("F", numba.njit(inline="never", **OPTIONS)(function))


def _float_pointer(_context: Any, address: Any) -> Any:
    """Take an integer for the address of a float32."""
    pointer = types.CPointer(types.float32)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(address), generate


float_pointer: Final = intrinsic(_float_pointer)


@inlined
def elements(address: int, first: int, n: int) -> Floats:
    """Return n elements of the tensor at an address, from the first on."""
    whole: Floats = numba.carray(float_pointer(address), (first + n,))
    return whole[first:]


@loop
def subtract(a: Floats, b: Floats, out: Floats) -> None:
    """Set `out` to a - b."""
    for i in range(len(a)):
        out[i] = a[i] - b[i]


@loop
def product(a: Floats, b: Floats) -> np.float32:
    """Return <a, b>."""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@loop
def products(a: Floats, b: Floats, c: Floats) -> tuple[np.float32, np.float32]:
    """Return <a, c> and <b, c>."""
    first = second = np.float32(0)
    for i in range(len(c)):
        first += a[i] * c[i]
        second += b[i] * c[i]
    return first, second


@loop
def sum_of_bits(words: npt.NDArray[np.int32]) -> np.int64:
    """Return a sum that any change of the bits changes."""
    total = np.int64(0)
    for i in range(len(words)):
        # The place counts too, so that an exchange is seen.
        total += np.int64(words[i]) * (2 * i + 1)
    return total


@loop
def fold(
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
    """Add signed vectors to three folds, see `trajstore.kernels.measure_before`."""
    for i in range(len(signs)):
        of_weighted[i] += weighted_sign * signs[i] * gradient[i]
    for i in range(len(signs)):
        sign = probe_sign * probe_signs[i]
        of_gradient[i] += sign * gradient[i]
        of_displacement[i] += sign * displacement[i]


@loop
def fold_one(vector: Floats, signs: Floats, sign: np.float32, out: Floats) -> None:
    """Add a signed vector to a fold."""
    for i in range(len(vector)):
        out[i] += sign * signs[i] * vector[i]


@loop
def add_signed(a: Floats, signs: Floats, out: Floats) -> None:
    """Add a * signs to `out`."""
    for i in range(len(a)):
        out[i] += a[i] * signs[i]


@loop
def multiply(a: Floats, signs: Floats, scale: np.float32) -> None:
    """Multiply a by signs and a scale."""
    for i in range(len(a)):
        a[i] *= signs[i] * scale


@inlined
def hadamard(a: Floats) -> None:
    """Apply the Hadamard transform without its normalisation, in place."""
    n, h = len(a), 1
    if n >= 16:
        hadamard_of_16(a)
        h = 16
    while 4 * h <= n:
        for i in range(0, n, 4 * h):
            hadamard_of_4(
                a[i : i + h],
                a[i + h : i + 2 * h],
                a[i + 2 * h : i + 3 * h],
                a[i + 3 * h : i + 4 * h],
            )
        h *= 4
    while h < n:
        for i in range(0, n, 2 * h):
            hadamard_of_2(a[i : i + h], a[i + h : i + 2 * h])
        h *= 2


@loop
def hadamard_of_2(a: Floats, b: Floats) -> None:
    """One level of butterflies between two parts."""
    for i in range(len(a)):
        total, difference = a[i] + b[i], a[i] - b[i]
        a[i] = total
        b[i] = difference


@loop
def hadamard_of_4(a: Floats, b: Floats, c: Floats, d: Floats) -> None:
    """Two levels of butterflies between four parts."""
    for i in range(len(a)):
        ac, bd = a[i] + c[i], b[i] + d[i]
        a_c, b_d = a[i] - c[i], b[i] - d[i]
        a[i] = ac + bd
        b[i] = ac - bd
        c[i] = a_c + b_d
        d[i] = a_c - b_d


@loop
def hadamard_of_16(a: Floats) -> None:
    """Transform each 16 neighbours, four levels of butterflies in registers."""
    for i in range(0, len(a), 16):
        for k in range(8):
            total, difference = a[i + k] + a[i + k + 8], a[i + k] - a[i + k + 8]
            a[i + k] = total
            a[i + k + 8] = difference
        for j in range(0, 16, 8):
            for k in range(4):
                one, two = i + j + k, i + j + k + 4
                total, difference = a[one] + a[two], a[one] - a[two]
                a[one] = total
                a[two] = difference
        for j in range(0, 16, 4):
            p, q = a[i + j] + a[i + j + 2], a[i + j + 1] + a[i + j + 3]
            r, s = a[i + j] - a[i + j + 2], a[i + j + 1] - a[i + j + 3]
            a[i + j] = p + q
            a[i + j + 1] = p - q
            a[i + j + 2] = r + s
            a[i + j + 3] = r - s


@loop
def norms(a: Floats) -> tuple[np.float32, np.float32]:
    """Return |a|^2 and the sum of magnitudes."""
    energy = magnitude = np.float32(0)
    for i in range(len(a)):
        energy += a[i] * a[i]
        magnitude += abs(a[i])
    return energy, magnitude


@loop
def pack(a: Floats, code: npt.NDArray[np.uint8]) -> None:
    """Write the signs of a as bits, the first in the highest; 1 for 0 and above."""
    for i in range(len(code)):
        byte = 0
        for k in range(8):
            byte = (byte << 1) | (a[8 * i + k] >= 0)
        code[i] = byte


@inlined
def philox(
    block: np.uint64, step: int, seed: int, role: int, words: npt.NDArray[np.uint64]
) -> None:
    """Write four words of Philox4x64-10, see `trajstore.signs`."""
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
    """Return the upper 64 of the 128 bits of a product."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    x_low, x_high, y_low, y_high = x & mask, x >> half, y & mask, y >> half
    middle = x_high * y_low + ((x_low * y_low) >> half)
    other = x_low * y_high + (middle & mask)
    high: np.uint64 = x_high * y_high + (middle >> half) + (other >> half)
    return high


@loop
def unpack(word: np.uint64, signs: Floats) -> None:
    """Turn 64 bits into signs: bytes in little-endian order, in each the highest first."""
    for i in range(8):
        byte = np.int32((word >> np.uint64(8 * i)) & np.uint64(0xFF))
        for k in range(8):
            signs[8 * i + k] = np.float32(2 * ((byte >> (7 - k)) & 1) - 1)
