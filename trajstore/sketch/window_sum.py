"""Sketch the sum of all gradients of a window, for the means over many steps.

The errors of single steps are independent, so the mean of n steps keeps a part of them. The sum of
the window's gradients, sketched once, estimates the same mean with an error of its own: noise that
differs from step to step cancels in the sum before the sum is coded.

Folding is linear. A fold whose signs stay the same during a window therefore adds up step by step,
without a vector as long as the gradient. The rows of `trajstore.sketch.fold` are dealt to `n_folds`
folds in turn: row b, with the column signs of the window and a row sign, is added to fold
``b % n_folds``. At the end of the window every fold is rotated and coded with one bit per number.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import n_columns
from trajstore.format.layout import Layout
from trajstore.format.run_spec import RunSpec
from trajstore.format.windows import Windows
from trajstore.sketch import onebit
from trajstore.sketch.rotation import rotate, rotate_back
from trajstore.sketch.signs import Role, random_signs
from trajstore.sketch.sketch import FOLD_VARIANCE, Sketch, sketch_of

FloatArray = npt.NDArray[np.float32]

BYTES_SHARE: Final = 0.04
"""Largest share of the bytes of all windows that their sums may take."""

LEAST_STEPS: Final = 8
"""Number of steps of the shortest window that has sums."""

LEAST_GAIN: Final = 4
"""Least ratio of the variances of probes and of a sketch with which displacements are added up."""

MAX_FOLDS: Final = 8
"""Largest number of folds: with more of them, the errors of distances prevail in means."""


@dataclass(frozen=True, slots=False, kw_only=True)
class WindowSum:
    """Encodes and decodes the sum of the weighted gradients of one window."""

    sketch: (
        Sketch  # sketch of the window, whose weights and column signs the sum shares
    )
    n_folds: int  # at most the number of rows of a fold

    @cached_property
    def _signs(self) -> FloatArray:
        n_rotation = self.n_folds * self.sketch.numbers
        return random_signs(
            self.sketch.fold.n_rows + n_rotation,
            seed=self.sketch.seed,
            role=Role.WINDOW,
            step=self.sketch.window,
        )

    @property
    def row_signs(self) -> FloatArray:
        """The signs of the rows of the fold, float32 (row,)."""
        return self._signs[: self.sketch.fold.n_rows]

    @property
    def rotation_signs(self) -> FloatArray:
        """The signs of the rotations, float32 (fold, number)."""
        rotation = self._signs[self.sketch.fold.n_rows :]
        return rotation.reshape(self.n_folds, self.sketch.numbers)

    def fold(self, total: FloatArray) -> FloatArray:
        """Return the folds of a weighted sum of gradients, float32 (fold, number)."""
        rows = self.row_signs[:, None] * self.sketch.fold.signed_rows(total)
        folds = np.zeros((self.n_folds, self.sketch.numbers), np.float32)
        for i in range(self.n_folds):
            folds[i, : rows.shape[1]] = rows[i :: self.n_folds].sum(0)
        return folds

    def encode(self, total: FloatArray) -> tuple[npt.NDArray[np.uint8], FloatArray]:
        """Return the signs (fold, bits / 8) and scales (fold, n_blocks) of a weighted sum."""
        is_mixed = self.sketch.is_mixed
        rotated = rotate(self.fold(total), self.rotation_signs, is_mixed=is_mixed)
        return onebit.encode(rotated)

    def decode(self, signs: npt.NDArray[np.uint8], scales: FloatArray) -> FloatArray:
        """Return unbiased estimates of the folds, float32 (fold, width)."""
        # One fold at a time stays in the cache.
        is_mixed, rotations = self.sketch.is_mixed, self.rotation_signs
        folds = np.empty((self.n_folds, self.sketch.fold.width), np.float32)
        coded, spare = np.empty((2, self.sketch.numbers), np.float32)
        for i, fold in enumerate(folds):
            onebit.decode(signs[i], scales[i], out=coded)
            rotate_back(coded, rotations[i], (spare, coded), fold, is_mixed=is_mixed)
        return folds


def with_window_sums(spec: RunSpec, windows: Windows, *, is_sgd: bool) -> RunSpec:
    """Return a spec that stores what is best for these windows."""
    has_energies = not (spec.exact or spec.is_packed or spec.float64)
    spec = replace(spec, energies=has_energies)
    # What SGD does in a window follows from the anchors, without sums.
    if is_sgd:
        return spec
    n_sketches = affordable_sketches(spec, windows)
    has_displacements = n_sketches > 0 and _tells_more_than_probes(spec)
    n_folds = 0
    if has_energies:
        n_rows = sketch_of(spec, Layout(spec.names, spec.shapes)).fold.n_rows
        n_folds = min(n_sketches - has_displacements, n_rows, MAX_FOLDS)
    return replace(spec, displacement_sum=has_displacements, window_folds=n_folds)


def _tells_more_than_probes(spec: RunSpec) -> bool:
    """Whether a sketch tells far more about displacements than probes."""
    if spec.n_params <= spec.probes:
        # There is a probe for every parameter.
        return False
    sketch = sketch_of(spec, Layout(spec.names, spec.shapes))
    folded = 0.0 if sketch.is_packed else FOLD_VARIANCE / sketch.numbers
    return LEAST_GAIN * (folded + sketch.code_variance) < 1 / spec.probes


def affordable_sketches(spec: RunSpec, windows: Windows) -> int:
    """Return the number of sketches that a window may add to those of its steps."""
    n_with_sums = int((windows.lengths >= LEAST_STEPS).sum())
    if spec.exact or spec.float64 or n_with_sums == 0:
        return 0
    # A row has signs, probes of one and of two bytes, and tables.
    sketch_bytes = spec.sketch_bits // 8
    tables = 4 * len(spec.names) * n_columns(spec)
    row_bytes = sketch_bytes + 3 * spec.probes + tables
    size = Layout(spec.names, spec.shapes).size
    n_windows, n_steps = len(windows.lengths), int(windows.lengths.sum())
    whole = n_windows * size + n_steps * row_bytes
    return int(BYTES_SHARE * whole / (n_with_sums * sketch_bytes))
