"""Code numbers with 1, 2, 4, 8 or 16 bits each and one scale per block, without bias.

A rotated vector y is divided by its root-mean-square, and every number is replaced by the
nearest of 2^bits levels c for normal numbers: for up to four bits the levels of Lloyd and Max [1]_
with the smallest squared error, for more bits ``sqrt(3) Phi^-1((i + 1/2) / 2^bits)``, which come
within one per cent of that error. The scale ``|y|^2 / <y, c>`` makes the decoded vector
unbiased after the inverse rotation, as in EDEN [2]_; the error of the decoded vector is orthogonal
to y, and its square is `CODE_VARIANCE` times |y|^2. With one bit this is the code of
`trajstore.sketch.onebit`.

References
----------
.. [1] J. Max, "Quantizing for minimum distortion", IRE Transactions on Information Theory, 1960,
   table I. DOI 10.1109/TIT.1960.1057548.
.. [2] S. Vargaftik et al., "EDEN: Communication-Efficient and Robust Distributed Mean
   Estimation for Federated Learning", ICML 2022. arXiv 2108.08842.
"""

from collections.abc import Mapping
from functools import cache
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import n_blocks
from trajstore.sketch import onebit

FloatArray = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

CODE_VARIANCE: Final[Mapping[int, float]] = {
    1: np.pi / 2 - 1,
    2: 0.133121,
    4: 0.00959214,
    8: 4.13945e-5,
    16: 6.33454e-10,
}
"""By number of bits: the squared error of a decoded normal vector of norm 1."""

POSITIVE_LEVELS: Final[Mapping[int, tuple[float, ...]]] = {
    1: (0.79788456,),
    2: (0.45278003, 1.51041761),
    4: (
        *(0.12839503, 0.38804830, 0.65675912, 0.94234046),
        *(1.25623120, 1.61804639, 2.06901723, 2.73258957),
    ),
}
"""By number of bits: levels with the smallest squared error."""


GUIDED: Final = 8.0
"""A number above the magnitude of every border, up to which a `guide` helps to code numbers."""

N_CELLS: Final = 4096
"""Number of cells of equal length that a guide divides the numbers up to `GUIDED` into."""


@cache
def levels(bits: int) -> FloatArray:
    """Return the levels of normal numbers in ascending order, float32 (2^bits,)."""
    half = 1 << (bits - 1)
    if bits in POSITIVE_LEVELS:
        positive = np.array(POSITIVE_LEVELS[bits])
    else:
        quantile = NormalDist(sigma=np.sqrt(3)).inv_cdf
        positive = np.array(
            [quantile(0.5 + (i + 0.5) / (2 * half)) for i in range(half)]
        )
    return np.concatenate([-positive[::-1], positive]).astype(np.float32)


@cache
def borders(bits: int) -> FloatArray:
    """Return the numbers half-way between neighbouring levels, float32 (2^bits - 1,)."""
    centres = levels(bits).astype(np.float64)
    return ((centres[1:] + centres[:-1]) / 2).astype(np.float32)


@cache
def guide(bits: int) -> FloatArray:
    """Return the numbers of borders below the ends of cells, float32 (N_CELLS + 1,)."""
    # Fractions say how far an end is on the way to the next border. Interpolated in a cell, they
    # give the level of a number; next to a border, the level may be the neighbour's.
    ends = GUIDED * (2 * np.arange(N_CELLS + 1) / N_CELLS - 1)
    n = len(borders(bits))
    counts = np.interp(ends, borders(bits), np.arange(1, n + 1), left=0.5, right=n)
    return counts.astype(np.float32)


def encode(vectors: FloatArray, bits: int) -> tuple[Bytes, FloatArray]:
    """Return packed codes, uint8 (..., bits size / 8), and scales, float32 (..., block)."""
    # The first number has the highest bits, and so has the first byte of 16 bits. The scale
    # is 0 for a block of zeros, and NaN for a block that is not finite.
    size = vectors.shape[-1]
    blocks = vectors.reshape(*vectors.shape[:-1], n_blocks(size), -1)
    with np.errstate(invalid="ignore", over="ignore"):
        # In float32, squares of small and of large numbers would underflow and overflow.
        energy = np.square(blocks, dtype=np.float64).sum(-1)
        rms = np.sqrt(energy / blocks.shape[-1]).astype(np.float32)
        unit = blocks / np.where(rms == 0, 1, rms)[..., None]
        codes = np.searchsorted(borders(bits), unit, side="right")
        product = (blocks * levels(bits)[codes]).sum(-1)
        scales = np.divide(
            energy, product, out=np.zeros_like(energy), where=energy != 0
        )
    return pack(codes.reshape(vectors.shape), bits), onebit.usable(scales, energy)


def decode(
    packed: Bytes, scales: FloatArray, bits: int, out: FloatArray | None = None
) -> FloatArray:
    """Return levels times their scales, float32 (..., size); written to `out` if given."""
    if bits > 8:
        indices, table = packed.view(">u2"), levels(bits)
        shape = indices.shape
    else:
        indices, table = packed, _levels_of_byte(bits)
        shape = (*packed.shape, 8 // bits)
    if out is None:
        out = np.empty((*packed.shape[:-1], 8 * packed.shape[-1] // bits), np.float32)
    # Every code is a valid index, and mode "clip" lets NumPy write to `out` without a copy.
    np.take(
        table, indices.astype(np.int64), axis=0, out=out.reshape(shape), mode="clip"
    )
    blocks = out.reshape(*scales.shape, -1)
    blocks *= scales[..., None]
    return out


def pack(codes: npt.NDArray[np.int64], bits: int) -> Bytes:
    """Write codes with the given number of bits, highest bit first, uint8 (..., byte)."""
    if bits > 8:
        return np.ascontiguousarray(codes.astype(">u2")).view(np.uint8)
    by_byte = codes.reshape(*codes.shape[:-1], -1, 8 // bits)
    places = 1 << np.arange(8 - bits, -1, -bits)
    packed: Bytes = (by_byte @ places).astype(np.uint8)
    return packed


@cache
def _levels_of_byte(bits: int) -> FloatArray:
    """Return the levels that each value of a byte stands for, float32 (256, number)."""
    shifts = np.arange(8 - bits, -1, -bits)
    codes = (np.arange(256)[:, None] >> shifts) & ((1 << bits) - 1)
    by_byte: FloatArray = levels(bits)[codes]
    return by_byte
