"""Fixed random probes: short vectors that keep inner products between any two steps.

A probe is a fold of a fold (`trajstore.sketch.fold`) with signs that stay the same for the whole
run. ``E <P(g), P(v)> = <g, v>`` over the draw of the signs, with variance
``(|g|^2 |v|^2 + <g, v>^2) / n`` for vectors spread over many elements. Because the signs
are fixed, the errors of different steps are *not* independent.
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
    """Probes of the vectors of a run."""

    fold: Fold  # the first, with the column signs of the sketch
    count: int  # numbers in a probe, a power of two; the largest prime below is filled

    @cached_property
    def row_signs(self) -> FloatArray:
        """Row signs of the first fold, float32 (n_rows,)."""
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
        """Return the probe, float32 (count,), of a vector (size,)."""
        return self.of_folded(self.row_signs @ self.fold.signed_rows(vector))

    def of_folded(self, folded: FloatArray) -> FloatArray:
        """Return the probe, float32 (count,), of a first fold (width,)."""
        # Row signs would change nothing here: the column signs of the rows differ.
        return self.bucket_fold(folded, np.ones(self.bucket_fold.n_rows, np.float32))
