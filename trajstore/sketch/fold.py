"""Fold a long vector into a few thousand buckets with random signs.

A vector g is laid out in rows g_b of a prime width p. Each row is multiplied by random column
signs sigma_b, and the rows are summed with random row signs tau_b, one sign per row:
``y = sum_b tau_b (sigma_b * g_b)``. Inner products are kept
on average, ``E <fold(g), fold(v)> = <g, v>``, and with fresh row signs tau the errors of different
steps are independent for any sigma. The size of the errors depends on sigma, so the sketch draws
new column signs in every window: no tensor has bad luck for a whole run.

The widths of weight matrices are highly composite. A prime width p keeps the elements
of a column of such a matrix from falling on the same few buckets.

The column signs are ``sigma[b, j] = c[SHIFT * b + j]`` with one sequence c of random signs, so
they need little memory. The variance over tau of an inner product is the sum of
``(<sigma_b g_b, sigma_b' v_b'> + <sigma_b g_b', sigma_b' v_b>)^2`` over pairs of rows b, b'. Within
a pair, the products ``sigma[b, j] sigma[b', j]`` of different columns j are uncorrelated. The mean
over c of that variance is therefore the same as with independent signs.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from trajstore.format.layout import BLOCK
from trajstore.sketch.signs import Role, random_signs

FloatArray = npt.NDArray[np.float32]

GOLDEN: Final = 633
"""Approximate width of large folds modulo `BLOCK`: `BLOCK` times the golden ratio 0.618.

Each tensor begins at the start of a block, and a small tensor is followed by zeros. With this
width modulo `BLOCK`, tensors that begin in different rows begin in buckets far from each other."""

SHIFT: Final = 2
"""Number of places by which the sequence of column signs moves from row to row."""


@cache
def largest_prime_below(n: int) -> int:
    """Return the largest prime below n > 2; cached, because every window creates a fold."""
    return next(
        p for p in range(n - 1, 1, -1) if all(p % q for q in range(2, int(p**0.5) + 1))
    )


@dataclass(frozen=True, slots=False, kw_only=True)
class Fold:
    """Folds vectors of a fixed length."""

    size: int  # length of the vectors
    buckets: int  # a power of two, at least 4; `width` of them are filled
    seed: int  # seed of the run
    column_role: Role  # random stream of the column signs
    window: int = 0  # window whose column signs are used
    is_packed: bool = False  # whether the whole vector is one row

    @cached_property
    def width(self) -> int:
        """The length of a row, prime unless packed, which is the number of filled buckets."""
        if self.is_packed:
            return self.size
        spare = BLOCK - GOLDEN if self.buckets >= 8 * BLOCK else 0
        return largest_prime_below(self.buckets - spare)

    @property
    def n_rows(self) -> int:
        """Number of rows, counting the last row, which is padded with zeros."""
        return -(-self.size // self.width)

    @cached_property
    def column_signs(self) -> FloatArray:
        """The column signs sigma, float32 (n_rows, width), read-only."""
        sequence = self.column_sequence
        rows = np.lib.stride_tricks.sliding_window_view(sequence, self.width)
        return rows[::SHIFT]

    @cached_property
    def column_sequence(self) -> FloatArray:
        """The sequence c that every row of column signs is a part of, float32 (sign,)."""
        return random_signs(
            self.width + SHIFT * (self.n_rows - 1),
            seed=self.seed,
            role=self.column_role,
            step=self.window,
        )

    def signed_rows(self, vector: FloatArray, first: int = 0) -> FloatArray:
        """Return part of a vector, beginning at row `first`, times column signs, (row, width)."""
        # The last row is padded with zeros.
        rows = -(-len(vector) // self.width)
        padded = np.zeros(rows * self.width, np.float32)
        padded[: len(vector)] = vector
        matrix = padded.reshape(rows, self.width)
        matrix *= self.column_signs[first : first + rows]
        return matrix

    def __call__(self, vector: FloatArray, row_signs: FloatArray) -> FloatArray:
        """Return the folds of a vector with row signs (..., n_rows), float32 (..., buckets)."""
        folded = row_signs @ self.signed_rows(vector)
        empty = [(0, 0)] * (folded.ndim - 1) + [(0, self.buckets - self.width)]
        return np.pad(folded, empty)
