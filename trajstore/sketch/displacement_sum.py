"""Sketch the sum of all displacements of a window, for the mean distance to the target.

Probes estimate the product of every displacement x - r with a vector, but the errors of
neighbouring steps are alike, so a mean over steps is hardly more precise than one step. A sketch of
the sum of the displacements knows the same mean far better, and its size is that of one step's
sketch, however long the window.

The probes fold every displacement with signs that stay the same for the whole run, and folding is
linear. So the folds add up step by step, without a vector as long as the parameters. Displacements
grow towards the end of the window, where the displacement f is known from the next anchor. The
multiple ``middle(n) f`` is subtracted from the sum of n displacements: what is left is short, and
has a small error. At the end of the window it is rotated and coded like the sketch of a gradient.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.sketch import levels, onebit
from trajstore.sketch.probes import Probes
from trajstore.sketch.rotation import rotate, rotate_back
from trajstore.sketch.signs import Role, random_signs
from trajstore.sketch.sketch import Sketch

FloatArray = npt.NDArray[np.float32]


def middle(n_steps: int) -> float:
    """Return how many times f is subtracted from the sum of `n_steps` displacements."""
    # The sum of k / n_steps over the steps k, as if the path were straight.
    return (n_steps - 1) / 2


class DecodedSum(NamedTuple):
    """A decoded fold of displacements."""

    fold: FloatArray  # unbiased estimate, float32 (bucket,)
    energy: float  # estimate of the squared norm of the displacements


@dataclass(frozen=True, slots=False, kw_only=True)
class DisplacementSum:
    """Encodes and decodes the sum of the displacements of one window."""

    sketch: Sketch
    probes: Probes
    window: int

    @cached_property
    def rotation_signs(self) -> FloatArray:
        """The signs of the rotation, float32 (number,)."""
        return random_signs(
            self.sketch.numbers,
            seed=self.sketch.seed,
            role=Role.DISPLACEMENTS,
            step=self.window,
        )

    def encode(self, total: FloatArray) -> tuple[npt.NDArray[np.uint8], FloatArray]:
        """Return the codes (bits / 8,) and scales (n_blocks,) of a vector, (size,)."""
        fold = self.probes.fold(total, self.probes.row_signs)
        rotated = rotate(fold, self.rotation_signs, is_mixed=self.sketch.is_mixed)
        if self.sketch.bits_per_number == 1:
            return onebit.encode(rotated)
        return levels.encode(rotated, self.sketch.bits_per_number)

    def decode(self, codes: npt.NDArray[np.uint8], scales: FloatArray) -> DecodedSum:
        """Return an unbiased estimate of the fold."""
        sketch, bits = self.sketch, self.sketch.bits_per_number
        if bits == 1:
            rotated = onebit.decode(codes, scales)
        else:
            rotated = levels.decode(codes, scales, bits)
        # The error of the code is orthogonal to the coded vector.
        energy = float(np.square(rotated, dtype=np.float64).sum())
        energy /= 1 + levels.CODE_VARIANCE[bits]
        fold = rotate_back(rotated, self.rotation_signs, is_mixed=sketch.is_mixed)
        return DecodedSum(fold[: sketch.fold.width], energy)
