"""Fixed random probes: short vectors that estimate inner products between any two steps.

A probe is a fold of a fold (`trajstore.sketch.fold`) with signs that stay the same for the whole
run. Over the draw of the signs, ``E <P(g), P(v)> = <g, v>``. With n numbers in a probe, the
variance is ``(|g|^2 |v|^2 + <g, v>^2) / n`` for vectors spread over many elements. Because the
signs are fixed, the errors of different steps are *not* independent.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from trajstore.sketch.fold import Fold
from trajstore.sketch.signs import Role, random_signs

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=False, kw_only=True)
class Probes:
    """Makes the probes of the vectors of a run."""

    fold: Fold  # the first fold, which shares its column signs with the sketch
    # Length of a probe, a power of two. The largest prime below it is the number of filled
    # entries.
    count: int

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

    def of_folded(self, folded: FloatArray) -> FloatArray:
        """Return the probe of a vector from its first fold (width,), float32 (count,)."""
        # Random row signs would add nothing: the column signs differ from row to row.
        return self.bucket_fold(folded, np.ones(self.bucket_fold.n_rows, np.float32))
