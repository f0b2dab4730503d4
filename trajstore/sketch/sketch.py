"""Sketch a gradient with one bit per number: weight, fold and rotate it, and keep the signs.

The gradient g_k of step k is multiplied by a positive weight per tensor, folded with fresh row
signs (`trajstore.sketch.fold`), rotated (`trajstore.sketch.rotation`) and coded with one bit per
number (`trajstore.sketch.onebit`). For any vector v, the product of the decoded sketch with v
(`Decoded`) is ``<g_k, v>`` on average. The analysis knows v exactly: it divides v by the same
weights, and uses it in full precision. During training, `trajstore.sketch_torch.sketch` or
compiled loops compute the sketch.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import n_blocks
from trajstore.sketch import onebit
from trajstore.sketch.fold import Fold
from trajstore.sketch.rotation import rotate, rotate_back
from trajstore.sketch.signs import Role, random_signs

FloatArray = npt.NDArray[np.float32]

FOLD_VARIANCE: Final = 1.0
"""m times the variance of a product that is estimated from uncoded folds into m buckets.

Holds for vectors of norm 1 that cover many rows."""

CODE_VARIANCE: Final = np.pi / 2 - 1
"""m times the variance that coding with one bit per number adds."""


@dataclass(frozen=True, slots=False, kw_only=True)
class Sketch:
    """Encodes and decodes the sketches of the gradients of a run."""

    size: int  # length of the flat gradient
    bits: int  # number of stored signs: a power of two, at least 8
    seed: int  # seed of the run
    window: int = 0  # window whose column signs the fold uses

    @cached_property
    def fold(self) -> Fold:
        """The fold of a weighted gradient into buckets."""
        return Fold(
            size=self.size,
            buckets=self.bits,
            seed=self.seed,
            column_role=Role.FOLD,
            window=self.window,
        )

    @property
    def n_blocks(self) -> int:
        """Number of blocks, each with a scale, in a sketch."""
        return n_blocks(self.bits)

    @property
    def sign_counts(self) -> tuple[int, int]:
        """Numbers of signs that a step draws for the rotation and for the rows of the fold."""
        return self.bits, self.fold.n_rows

    def step_signs(
        self, step: int, out: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return the signs of a step for the rotation, (bits,), and for the rows, (n_rows,)."""
        signs = random_signs(
            sum(self.sign_counts), seed=self.seed, role=Role.STEP, step=step, out=out
        )
        return signs[: self.bits], signs[self.bits :]

    def encode(
        self, gradient: FloatArray, step: int
    ) -> tuple[npt.NDArray[np.uint8], FloatArray]:
        """Return the signs (bits / 8,) and scales (n_blocks,) of a weighted gradient."""
        rotation, rows = self.step_signs(step)
        return onebit.encode(rotate(self.fold(gradient, rows), rotation))

    def decode(
        self,
        signs: npt.NDArray[np.uint8],  # (step, bits / 8)
        scales: FloatArray,  # (step, n_blocks)
        steps: npt.NDArray[np.int64],  # (step,): optimizer steps of the sketches
        out: FloatArray | None = None,  # (step, width): receives the folded gradients
    ) -> "Decoded":
        """Return unbiased estimates of folded gradients; NaN where a scale is NaN."""
        shape = (len(steps), self.fold.width)
        buckets = np.empty(shape, np.float32) if out is None else out
        row_signs = np.empty((len(steps), self.fold.n_rows), np.float32)
        # Allocating these arrays in every step would cost more than the arithmetic.
        first, second = np.empty((2, self.bits), np.float32)
        drawn = np.empty(-(-sum(self.sign_counts) // 8) * 8, np.float32)
        for i, step in enumerate(steps):
            rotation, row_signs[i] = self.step_signs(int(step), out=drawn)
            rotated = onebit.decode(signs[i], scales[i], out=second)
            rotate_back(rotated, rotation, (first, second), out=buckets[i])
        return Decoded(buckets, row_signs)


class Decoded(NamedTuple):
    """The decoded sketches of several steps."""

    # ``buckets[k] @ (row_signs[k] @ signed)`` estimates <g_k, v>, where the rows of `signed`
    # are the signed rows of v (`trajstore.sketch.fold.Fold.signed_rows`).
    buckets: FloatArray  # (step, width): estimates of the folded, weighted gradients
    row_signs: FloatArray  # (step, n_rows): row signs of the folds
