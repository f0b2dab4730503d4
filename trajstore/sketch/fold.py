"""Fold a long vector into a few thousand buckets with random signs.

The vector is laid out in rows of a prime width p, multiplied by random column signs, and its
rows are summed with further random signs: ``y = sum_b tau_b (sigma_b * g_b)``. Inner products
are kept on average, ``E <fold(g), fold(v)> = <g, v>``, and with fresh row signs tau the errors
of different steps are independent for any sigma. Their size depends on sigma: the sketch draws
new column signs in every window, so that no tensor has bad luck for a whole run.

A prime width keeps the columns of weight matrices, whose widths are highly composite, from
falling on the same few buckets.

The column signs are ``sigma[b, j] = c[SHIFT * b + j]`` with one sequence c of random signs, so
they cost no memory. The variance over tau is a sum over pairs of rows of
``(<sigma_b g_b, sigma_b' v_b'> + <sigma_b g_b', sigma_b' v_b>)^2``, and within a pair the
products of signs at different columns are uncorrelated: the mean over c is the same as with
independent signs.
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
"""A block times the golden section: width of large folds modulo a block.

Tensors begin with a block, and zeros follow small ones. With this remainder the beginnings in
different rows fall on buckets far from each other."""

SHIFT: Final = 2
"""Shift of the sequence of column signs from row to row."""


@cache
def largest_prime_below(n: int) -> int:
    """Return the largest prime below n > 2; cached, since every window makes a fold."""
    return next(
        p for p in range(n - 1, 1, -1) if all(p % q for q in range(2, int(p**0.5) + 1))
    )


@dataclass(frozen=True, slots=False, kw_only=True)
class Fold:
    """Fold of vectors of one length."""

    size: int  # length of the vectors
    buckets: int  # a power of two, at least 4; `width` of them are filled
    seed: int  # of the run
    column_role: Role  # stream of the column signs
    window: int = 0  # window of the column signs

    @cached_property
    def width(self) -> int:
        """Length of a row, a prime; the number of buckets that are filled."""
        spare = BLOCK - GOLDEN if self.buckets >= 8 * BLOCK else 0
        return largest_prime_below(self.buckets - spare)

    @property
    def n_rows(self) -> int:
        """Number of rows, the last one padded with zeros."""
        return -(-self.size // self.width)

    @cached_property
    def column_signs(self) -> FloatArray:
        """The column signs sigma, float32 (n_rows, width), read-only."""
        sequence = self.column_sequence
        rows = np.lib.stride_tricks.sliding_window_view(sequence, self.width)
        return rows[::SHIFT]

    @cached_property
    def column_sequence(self) -> FloatArray:
        """The sequence c; rows of column signs are parts of it, float32 (sign,)."""
        return random_signs(
            self.width + SHIFT * (self.n_rows - 1),
            seed=self.seed,
            role=self.column_role,
            step=self.window,
        )

    def signed_rows(self, vector: FloatArray, first: int = 0) -> FloatArray:
        """Lay out the entries from row `first` on and apply column signs, (row, width)."""
        # The last row is padded with zeros.
        rows = -(-len(vector) // self.width)
        padded = np.zeros(rows * self.width, np.float32)
        padded[: len(vector)] = vector
        matrix = padded.reshape(rows, self.width)
        matrix *= self.column_signs[first : first + rows]
        return matrix

    def __call__(self, vector: FloatArray, row_signs: FloatArray) -> FloatArray:
        """Fold one vector with row signs (..., n_rows), to float32 (..., buckets)."""
        folded = row_signs @ self.signed_rows(vector)
        empty = [(0, 0)] * (folded.ndim - 1) + [(0, self.buckets - self.width)]
        return np.pad(folded, empty)
