"""Sketch a gradient: weight, fold and rotate it, and keep a few bits of every number.

The gradient g_k of step k is multiplied by a positive weight per tensor, folded with fresh row
signs (`trajstore.sketch.fold`), rotated (`trajstore.sketch.rotation`) and coded, with one bit per
number (`trajstore.sketch.onebit`) or, in a small network, with more (`trajstore.sketch.levels`).
For any vector v, the product of the decoded sketch with v (`Decoded`) is ``<g_k, v>`` on average.
The analysis knows v exactly: it divides v by the same weights, and uses it in full precision. During
training, `trajstore.sketch_torch.sketch` or compiled loops compute the sketch.

If a sketch has at least as many numbers as the network has parameters, it is *packed*: nothing is
folded together, and the vector to rotate consists of the parameters without gaps.
"""

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import n_blocks
from trajstore.format.layout import Layout
from trajstore.format.run_spec import RunSpec
from trajstore.sketch import levels, onebit
from trajstore.sketch.fold import Fold
from trajstore.sketch.probes import Probes
from trajstore.sketch.rotation import rotate, rotate_back
from trajstore.sketch.signs import Role, random_signs

FloatArray = npt.NDArray[np.float32]

COMPILED_FROM: Final = 1 << 26
"""Numbers to decode from which on compiled loops are worth their import."""

SHORTEST_COMPILED: Final = 512
"""Smallest number of numbers in a sketch that compiled loops decode."""

FOLD_VARIANCE: Final = 1.0
"""m times the variance of a product that is estimated from uncoded folds into m buckets.

Holds for vectors of norm 1 that cover many rows."""

CODE_VARIANCE: Final = levels.CODE_VARIANCE[1]
"""m times the variance that coding with one bit per number adds."""


@dataclass(frozen=True, slots=False, kw_only=True)
class Sketch:
    """Encodes and decodes the sketches of the gradients of a run."""

    size: int  # length of the vector to sketch
    bits: int  # number of stored bits: a power of two, at least 8
    seed: int  # seed of the run
    window: int = 0  # window whose column signs the fold uses
    bits_per_number: int = 1
    is_packed: bool = False  # whether the vector has no gaps, and nothing is folded
    is_mixed: bool = False  # whether the rotation mixes the blocks, see `rotation`

    @cached_property
    def fold(self) -> Fold:
        """The fold of a weighted gradient into buckets."""
        return Fold(
            size=self.size,
            buckets=self.numbers,
            seed=self.seed,
            column_role=Role.FOLD,
            window=self.window,
            is_packed=self.is_packed,
        )

    @property
    def numbers(self) -> int:
        """Number of rotated numbers, each with a code."""
        return self.bits // self.bits_per_number

    @property
    def n_blocks(self) -> int:
        """Number of blocks, each with a scale, in a sketch."""
        return n_blocks(self.numbers)

    @property
    def code_variance(self) -> float:
        """The variance that the code adds to products of vectors of norm 1."""
        return levels.CODE_VARIANCE[self.bits_per_number] / self.numbers

    @property
    def sign_counts(self) -> tuple[int, int]:
        """Numbers of signs that a step draws for the rotation and for the rows of the fold."""
        return self.numbers, self.fold.n_rows

    def step_signs(
        self, step: int, out: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return the signs of a step for the rotation, (numbers,), and the rows, (n_rows,)."""
        signs = random_signs(
            sum(self.sign_counts), seed=self.seed, role=Role.STEP, step=step, out=out
        )
        return signs[: self.numbers], signs[self.numbers :]

    def encode(
        self, gradient: FloatArray, step: int
    ) -> tuple[npt.NDArray[np.uint8], FloatArray]:
        """Return the codes (bits / 8,) and scales (n_blocks,) of a weighted gradient."""
        rotation, rows = self.step_signs(step)
        rotated = rotate(self.fold(gradient, rows), rotation, is_mixed=self.is_mixed)
        if self.bits_per_number == 1:
            return onebit.encode(rotated)
        return levels.encode(rotated, self.bits_per_number)

    def decode(
        self,
        codes: npt.NDArray[np.uint8],  # (step, bits / 8)
        scales: FloatArray,  # (step, n_blocks)
        steps: npt.NDArray[np.int64],  # (step,): optimizer steps of the sketches
        out: FloatArray | None = None,  # (step, width): receives the folded gradients
        *,
        n_sketches: int = 0,  # number of sketches that this process decodes, roughly
    ) -> "Decoded":
        """Return unbiased estimates of folded gradients; NaN where a scale is NaN."""
        shape = (len(steps), self.fold.width)
        buckets = np.empty(shape, np.float32) if out is None else out
        is_simple = self.bits_per_number == 1 and self.n_blocks == 1
        if (
            is_simple
            and self.numbers >= SHORTEST_COMPILED
            and n_sketches * self.numbers >= COMPILED_FROM
        ):
            return self._decode_compiled(codes, scales, steps, buckets)
        row_signs = np.empty((len(steps), self.fold.n_rows), np.float32)
        # Allocating these arrays in every step would cost more than the arithmetic.
        first, second = np.empty((2, self.numbers), np.float32)
        drawn = np.empty(-(-sum(self.sign_counts) // 8) * 8, np.float32)
        for i, step in enumerate(steps):
            rotation, row_signs[i] = self.step_signs(int(step), out=drawn)
            if self.bits_per_number == 1:
                onebit.decode(codes[i], scales[i], out=second)
            else:
                levels.decode(codes[i], scales[i], self.bits_per_number, out=second)
            rotate_back(
                second, rotation, (first, second), buckets[i], is_mixed=self.is_mixed
            )
        return Decoded(buckets, row_signs)

    def _decode_compiled(
        self,
        codes: npt.NDArray[np.uint8],
        scales: FloatArray,
        steps: npt.NDArray[np.int64],
        buckets: FloatArray,
    ) -> "Decoded":
        """Decode as `decode` does, up to rounding, in compiled loops."""
        # Numba takes a third of a second to import. Modules of lazy_loader are not safe in threads.
        compiled = import_module("trajstore.sketch.compiled")
        row_signs = np.empty((len(steps), self.fold.n_rows), np.float32)
        compiled.decode_sketches(
            np.ascontiguousarray(codes),
            np.ascontiguousarray(scales[:, 0]),
            np.ascontiguousarray(steps),
            np.uint64(self.seed),
            np.uint64(Role.STEP),
            buckets,
            row_signs,
        )
        return Decoded(buckets, row_signs)


class Decoded(NamedTuple):
    """The decoded sketches of several steps."""

    # ``buckets[k] @ (row_signs[k] @ signed)`` estimates <g_k, v>, where the rows of `signed`
    # are the signed rows of v (`trajstore.sketch.fold.Fold.signed_rows`).
    buckets: FloatArray  # (step, width): estimates of the folded, weighted gradients
    row_signs: FloatArray  # (step, n_rows): row signs of the folds


def sketch_of(spec: RunSpec, layout: Layout) -> Sketch:
    """Return the sketch of a run's gradients in the first window."""
    return Sketch(
        size=layout.n_params if spec.is_packed else layout.size,
        bits=spec.sketch_bits,
        seed=spec.seed,
        bits_per_number=spec.bits_per_number,
        is_packed=spec.is_packed,
        is_mixed=spec.sketch_version > 1,
    )


def probes_of(spec: RunSpec, layout: Layout) -> Probes:
    """Return the probes of a run's vectors."""
    fold = sketch_of(spec, layout).fold
    return Probes(fold=fold, count=spec.probes, is_shifted=spec.sketch_version > 1)
