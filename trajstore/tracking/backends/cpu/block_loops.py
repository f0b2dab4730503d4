"""Loops over the elements of one block, which kernels for CPUs call.

Each loop reads few arrays: the compiler can rule out that so few arrays overlap, and vectorises the
loop. Sums that leave the range of float32 are computed again in float64.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import float32
from numba.extending import intrinsic

from trajstore.format.layout import BLOCK
from trajstore.tracking.backends.cpu.compiling import inlined, loop

Floats = npt.NDArray[np.float32]
Signs = npt.NDArray[np.int8]

LEAST_SUM: Final = 1e-35
"""A sum of products in float32 keeps its digits if the largest product of elements is larger."""

LEAST_SQUARE: Final = LEAST_SUM**2
"""The square of that."""

LEAST_CAREFREE: Final = 1e-20
MOST_CAREFREE: Final = 1e30
"""Range of |g|^2 in a block whose products with the next gradient are computed in float32."""

LEAST_MAGNITUDES: Final = BLOCK**2 * LEAST_SUM
"""The same for the product of the sums of magnitudes of two vectors."""


@inlined
def subtract(a: Floats, b: Floats, out: Floats) -> None:
    """Set `out` to a - b."""
    for i in range(len(a)):
        out[i] = a[i] - b[i]


@inlined
def products(a: Floats, b: Floats, c: Floats) -> tuple[np.float32, np.float32]:
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
def update_products(
    parameter: Floats, anchor: Floats, displacement: Floats
) -> tuple[np.float64, np.float64]:
    """Return <u, u> and <u, a> of the update u since the displacement was a."""
    square = product = np.float32(0)
    for i in range(len(parameter)):
        # Near the anchor r, x - r is exact, and so is the difference of two displacements.
        u = _difference(_difference(parameter[i], anchor[i]), displacement[i])
        square += u * u
        product += u * displacement[i]
    if LEAST_SUM < square < np.inf and abs(product) < np.inf:
        return np.float64(square), np.float64(product)
    wide_square = wide_product = np.float64(0)
    for i in range(len(parameter)):
        a = displacement[i]
        wide = np.float64(_difference(_difference(parameter[i], anchor[i]), a))
        wide_square += wide * wide
        wide_product += wide * np.float64(a)
    return wide_square, wide_product


@inlined
def measure_vectors(
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
def in_range(product: np.float32, a: Floats, b: Floats) -> np.float64:
    """Return <a, b>, which is `product` unless that has left the range of float32."""
    if LEAST_SUM < abs(product) < np.inf:
        return np.float64(product)
    if abs(product) <= LEAST_SUM:
        # A product that is 0 is right if one of the vectors is 0, or if they do not meet.
        # The compiler would not vectorise a maximum of the magnitudes.
        size_of_a = size_of_b = np.float32(0)
        for i in range(len(b)):
            size_of_a += abs(a[i])
            size_of_b += abs(b[i])
        bound = np.float64(size_of_a) * np.float64(size_of_b)
        if bound == 0 or bound > LEAST_MAGNITUDES:
            return np.float64(product)
    total = np.float64(0)
    for i in range(len(b)):
        total += np.float64(a[i]) * np.float64(b[i])
    return total


@inlined
def add_decoded(codes: npt.NDArray[np.int8], scale: np.float32, vector: Floats) -> None:
    """Decode the codes of one block, as `trajstore.sketch.deltas` does, and add the result."""
    for i in range(len(codes)):
        vector[i] += np.float32(codes[i]) * scale


@inlined
def sum_of_bits(words: npt.NDArray[np.int32], place: int) -> np.int64:
    """Return a checksum that depends on the words and on their places in a tensor."""
    total = np.int64(0)
    for i in range(len(words)):
        total += np.int64(words[i]) * (2 * (place + i) + 1)
    return total


@loop
def fold_vector(vector: Floats, signs: Signs, sign: np.float32, out: Floats) -> None:
    """Add a vector times column signs and a row sign to a fold."""
    for i in range(len(signs)):
        out[i] += sign * np.float32(signs[i]) * vector[i]


@inlined
def fold_both(
    gradient: Floats,
    displacement: Floats,
    signs: Signs,
    row_sign: np.float32,
    gradient_fold: Floats,
    displacement_fold: Floats,
) -> None:
    """Do the same for two vectors and their folds, with the same signs."""
    for i in range(len(signs)):
        sign = row_sign * np.float32(signs[i])
        gradient_fold[i] += sign * gradient[i]
        displacement_fold[i] += sign * displacement[i]
