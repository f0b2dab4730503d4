"""Code a rotated vector as one bit per number and one scale per block, without bias.

A rotated vector y is coded as its signs and the scale ``|y|^2 / |y|_1``, as in DRIVE [1]_ and
EDEN [2]_. The decoded vector then satisfies ``<decoded, y> = |y|^2``, which makes the code
unbiased after the inverse rotation. The squared error is about ``(pi / 2 - 1) |y|^2``.

References
----------
.. [1] S. Vargaftik et al., "DRIVE: One-bit Distributed Mean Estimation", NeurIPS 2021,
   section 4. arXiv 2105.08339.
.. [2] S. Vargaftik et al., "EDEN: Communication-Efficient and Robust Distributed Mean
   Estimation for Federated Learning", ICML 2022. arXiv 2108.08842.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import n_blocks
from trajstore.sketch.signs import unpack_signs

FloatArray = npt.NDArray[np.float32]

LEAST_SCALE: Final = 1e-33
"""Smaller numbers have lost digits when they were rotated; see `usable`."""


def encode(vectors: FloatArray) -> tuple[npt.NDArray[np.uint8], FloatArray]:
    """Return the packed signs, uint8 (..., size / 8), and scales, float32 (..., block)."""
    # A bit is 1 if its entry is not negative; the first entry has the highest bit. The scale
    # is 0 for a block of zeros, and NaN for a block that is not finite.
    size = vectors.shape[-1]
    blocks = vectors.reshape(*vectors.shape[:-1], n_blocks(size), -1)
    with np.errstate(invalid="ignore", over="ignore"):
        # In float32, squares of small and of large numbers would underflow and overflow.
        energy = np.square(blocks, dtype=np.float64).sum(-1)
        magnitude = np.abs(blocks).sum(-1)
        scales = np.divide(
            energy, magnitude, out=np.zeros_like(energy), where=magnitude != 0
        )
    return np.packbits(vectors >= 0, axis=-1), usable(scales, energy)


def usable(scales: npt.NDArray[Any], energy: npt.NDArray[Any]) -> FloatArray:
    """Return scales in float32, NaN where the numbers are too small or too large for float32."""
    # The sum of large magnitudes is infinite, which would leave a scale of 0.
    is_lost = (energy > 0) & ~(scales >= LEAST_SCALE)
    return np.where(is_lost, np.nan, scales).astype(np.float32)


def decode(
    signs: npt.NDArray[np.uint8], scales: FloatArray, out: FloatArray | None = None
) -> FloatArray:
    """Return the signs times their scales, float32 (..., size); written to `out` if given."""
    vectors = unpack_signs(signs, out)
    blocks = vectors.reshape(*scales.shape, -1)
    blocks *= scales[..., None]
    return vectors
