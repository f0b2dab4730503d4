"""Fixed random probes: short vectors that estimate inner products between any two steps.

A probe is a fold of a fold (`trajstore.sketch.fold`) with signs that stay the same for the whole
run. Over the draw of the signs, ``E <P(g), P(v)> = <g, v>``. With n numbers in a probe, the
variance is ``(|g|^2 |v|^2 + <g, v>^2) / n`` for vectors spread over many elements. Because the
signs are fixed, the errors of different steps are *not* independent.

Tensors begin at multiples of `BLOCK`, which is close to a multiple of the usual number of probes:
without a shift of the blocks, small tensors would all fall on the same few probes.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from trajstore.format.layout import BLOCK
from trajstore.sketch.fold import Fold
from trajstore.sketch.signs import Role, random_signs

FloatArray = npt.NDArray[np.float32]

GOLDEN_RATIO: Final = 0.618034

ALL: Final = slice(None)


@dataclass(frozen=True, slots=False, kw_only=True)
class Probes:
    """Makes the probes of the vectors of a run."""

    fold: Fold  # the first fold, which shares its column signs with the sketch
    # Length of a probe, a power of two. The largest prime below it is the number of filled
    # entries.
    count: int
    is_shifted: bool = False  # whether blocks are shifted; older stores lack this

    @cached_property
    def row_signs(self) -> FloatArray:
        """The row signs of the first fold, float32 (n_rows,)."""
        return random_signs(self.fold.n_rows, seed=self.fold.seed, role=Role.PROBE_ROWS)

    @cached_property
    def bucket_fold(self) -> Fold:
        """The second fold, from buckets to probes."""
        return Fold(
            size=self.fold.width,
            buckets=self.count,
            seed=self.fold.seed,
            column_role=Role.PROBE_FOLD,
        )

    def __call__(self, vector: FloatArray) -> FloatArray:
        """Return the probe of a vector (size,), float32 (count,)."""
        return self.of_folded(self.row_signs @ self.fold.signed_rows(vector))

    def of_folded(self, folded: FloatArray, buckets: slice = ALL) -> FloatArray:
        """Return the probe of a vector from its first fold (width,), float32 (count,)."""
        # The fold is 0 outside `buckets`.
        # Random row signs would add nothing: the column signs differ from row to row.
        if not self.is_shifted:
            ones = np.ones(self.bucket_fold.n_rows, np.float32)
            return self.bucket_fold(folded, ones)
        signed = folded[buckets] * self.bucket_signs[buckets]
        sums = np.bincount(self.probe_of_bucket[buckets], signed, self.count)
        return sums.astype(np.float32)

    @cached_property
    def bucket_signs(self) -> FloatArray:
        """The sign of every bucket of the first fold in its probe, float32 (width,)."""
        return self.bucket_fold.column_signs.reshape(-1)[: self.fold.width]

    @cached_property
    def probe_of_bucket(self) -> npt.NDArray[np.int64]:
        """The index of the probe that each bucket of the first fold belongs to, (width,)."""
        bucket = np.arange(self.fold.width)
        return (bucket + self.shift * (bucket // self.block)) % self.bucket_fold.width

    @property
    def block(self) -> int:
        """Number of neighbouring buckets that are shifted together."""
        return BLOCK if self.is_shifted else self.bucket_fold.width

    @property
    def shift(self) -> int:
        """Number of probes by which each block of buckets is shifted against the last one."""
        # Together with the length of a block, the shift comes to about 0.618 of all probes.
        width = self.bucket_fold.width
        return (round(GOLDEN_RATIO * width) - BLOCK) % width if self.is_shifted else 0
