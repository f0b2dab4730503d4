"""Rotate vectors randomly, by two rounds of signs and Hadamard transforms.

Each round multiplies by random signs, rho and then rho', and applies the normalised
Hadamard transform H in blocks of at most `MAX_BLOCK`: ``z = H rho' H rho y``. After one
round a vector with few large entries is still far from Gaussian, and a 1-bit code of it is
biased; two rounds suffice. Every factor is symmetric and orthogonal, and thus its own inverse,
so the inverse of the product is ``y = rho H rho' H z``.

If there are several blocks, the first transform also runs across them (`mix_blocks`), so that it
transforms the whole vector. Every block then gets the same share of every number of y: without
this, blocks that y leaves empty would be wasted, and the blocks of z would differ in energy. Stores
of `sketch_version` 1 lack this step.

The square root of 2 is no number of float32: where the factors 1 / sqrt(n) of both transforms are not
powers of 2, as for n = 2048, the rounded factors would make every sketch 7e-8 too small, and no mean
would reduce that error. The first transform is then made smaller by sqrt(2), and the second larger,
so that both factors are powers of 2 (`exponent_of`).

The signs are fresh in every step, which makes the errors of different steps independent.
The second round uses the signs of the first round with their halves swapped. If a vector has
few large entries, the result of its first round depends on few signs, so the signs of the
second round are almost independent of that result.
"""

from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import n_blocks

FloatArray = npt.NDArray[np.float32]

COLUMNS: Final = 256
"""Number of columns in a small matrix product; they stay in the fastest cache."""


def factors(block: int) -> tuple[int, ...]:
    """Split a power of two into factors of at most 16, the sizes of small transforms."""
    split = []
    while block > 16:
        split.append(16)
        block //= 16
    return (*split, block)


def exponent_of(n: int, *, is_second: bool) -> int:
    """Return k: a transform of n numbers, a power of two, is multiplied by 2^-k."""
    n_bits = n.bit_length() - 1
    return n_bits // 2 if is_second else (n_bits + 1) // 2


@cache
def sign_matrix(n: int) -> FloatArray:
    """Return the Sylvester-Hadamard matrix of ones and minus ones, (n, n); n is a power of two."""
    matrix: FloatArray = np.ones((1, 1), np.float32)
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def hadamard_matrix(n: int, *, is_second: bool) -> FloatArray:
    """Return the matrix of a transform of the first or the second round, float32 (n, n)."""
    scale = np.float32(2.0 ** -exponent_of(n, is_second=is_second))
    return sign_matrix(n) * scale


@cache
def hadamard_matrices(block: int, *, is_second: bool) -> tuple[FloatArray, ...]:
    """Return the small matrices whose Kronecker product transforms a block."""
    # All factors but the last one are 16, whose matrices are the same in both rounds.
    return tuple(hadamard_matrix(n, is_second=is_second) for n in factors(block))


def hadamard(
    vectors: FloatArray,
    buffers: tuple[FloatArray, FloatArray] | None = None,
    *,
    is_second: bool,
) -> FloatArray:
    """Apply the Hadamard transform of a round to each block of the last axis."""
    # A transform of size n1 n2 ... is the Kronecker product of transforms of sizes n1, n2,
    # ...: each factor is one small matrix product over one digit of the index. If buffers are
    # given, the result lies in one of them; `vectors` may be the second buffer.
    size = vectors.shape[-1]
    block = size // n_blocks(size)
    out, spare = buffers or (np.empty_like(vectors), np.empty_like(vectors))
    z, rest = vectors, block
    for matrix in hadamard_matrices(block, is_second=is_second):
        rest //= len(matrix)
        _transform_digit(z, matrix, rest, out)
        z, out, spare = out, spare, out
    return z


def _transform_digit(
    z: FloatArray, matrix: FloatArray, rest: int, out: FloatArray
) -> None:
    """Transform over the index digit that has as many values as `matrix`, and the place value `rest`."""
    factor = len(matrix)
    if rest == 1:
        # Over the last digit, a multiplication from the right is one large matrix product.
        np.matmul(z.reshape(-1, factor), matrix, out=out.reshape(-1, factor))
        return
    # Splitting long rows avoids a copy that BLAS makes before it multiplies a few long rows.
    shape = (-1, factor, max(1, rest // COLUMNS), min(rest, COLUMNS))
    np.matmul(
        matrix,
        z.reshape(shape).swapaxes(-3, -2),
        out=out.reshape(shape).swapaxes(-3, -2),
    )


def rotate(
    vectors: FloatArray, signs: FloatArray, *, is_mixed: bool = False
) -> FloatArray:
    """Return vectors, float32 (..., size), rotated with random signs of the same shape."""
    rotated = hadamard(signs * vectors, is_second=False)
    if is_mixed:
        rotated = mix_blocks(rotated)
    return hadamard(second_round(signs) * rotated, is_second=True)


def rotate_back(
    vectors: FloatArray,
    signs: FloatArray,
    buffers: tuple[FloatArray, FloatArray] | None = None,
    out: FloatArray | None = None,
    *,
    is_mixed: bool = False,
) -> FloatArray:
    """Undo `rotate` with the same signs; return the vectors, float32 (..., size)."""
    # `hadamard` explains the buffers. A shorter `out` receives only the first entries.
    buffers = buffers or (np.empty_like(vectors), np.empty_like(vectors))
    rotated = hadamard(vectors, buffers, is_second=True)
    # Apply `second_round` without a copy: decoding spends most of its time in this function.
    half = rotated.shape[-1] // 2
    rotated[..., half:] *= signs[..., : signs.shape[-1] - half]
    rotated[..., :half] *= signs[..., signs.shape[-1] - half :]
    spare = buffers[0] if rotated is buffers[1] else buffers[1]
    if is_mixed and (mixed := mix_blocks(rotated, out=spare)) is spare:
        rotated, spare = mixed, rotated
    rotated = hadamard(rotated, (spare, rotated), is_second=False)
    out = rotated if out is None else out
    n = out.shape[-1]
    return np.multiply(rotated[..., :n], signs[..., :n], out=out)


def mix_blocks(vectors: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """Apply the normalised Hadamard transform across blocks; the result may lie in `out`."""
    # After `hadamard`, this completes the transform of a whole vector, which is symmetric.
    n = n_blocks(vectors.shape[-1])
    if n == 1:
        return vectors
    shape = (*vectors.shape[:-1], n, -1)
    out = np.empty_like(vectors) if out is None else out
    np.matmul(matrix_across(n), vectors.reshape(shape), out=out.reshape(shape))
    return out


def matrix_across(n: int) -> FloatArray:
    """Return the normalised Hadamard matrix that mixes n blocks, float32 (n, n)."""
    matrix: FloatArray = sign_matrix(n) / np.float32(np.sqrt(n))
    return matrix


def second_round(signs: FloatArray) -> FloatArray:
    """Return the signs of the second round: those of the first round with halves swapped."""
    return np.roll(signs, signs.shape[-1] // 2, axis=-1)
