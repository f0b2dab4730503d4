"""The interface of backends, which measure gradients and updates on one device.

Flat vectors are float32 (size,), have the layout of `trajstore.tracking.placement.Placement`, and
are zero in the gaps between tensors. A row is one step of the buffers from
`trajstore.tracking.tracker.Tracker.allocate`; backends overwrite its tensors. Only
`parameters_unchanged_since_step` waits for an accelerator.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor

from trajstore.format.run_spec import RunSpec
from trajstore.tracking.past_anchors import PastAnchors
from trajstore.tracking.placement import Placement

# Vectors of the last measured row that a backend holds, and rows of `read_displacement`.
GRADIENT: Final = 0
DISPLACEMENT: Final = 1


class LastStep(NamedTuple):
    """A measured step whose update is measured now."""

    row: Mapping[str, Tensor]
    """The row of the step, which receives the columns of the update."""
    gradient_energy: Tensor
    """|g|^2 of the window's steps by layer, float64 (layer,), to which that of the row is added."""


class StepBackend(Protocol):
    """Measures the steps of one training run, and owns the vectors needed for that."""

    @property
    def joins_updates(self) -> bool:
        """Whether `measure` can also measure the last update."""

    def __init__(
        self,
        parameters: Sequence[Tensor | None],
        placement: Placement,
        spec: RunSpec,
        past: PastAnchors,
        device: torch.device,
    ) -> None:
        """Follow these parameters, one per layer; None for a layer that only other ranks have."""

    def follow(self, parameters: Sequence[Tensor | None]) -> None:
        """Follow other tensors of the same shapes from now on."""

    @property
    def anchor(self) -> Tensor:
        """The anchor, float32 (size,), which the tracker moves."""

    @property
    def pieces(self) -> Sequence[slice]:
        """Ranges of whole blocks of the flat vector, which `read_displacement` reads one by one."""

    def held(self, which: int) -> Tensor:
        """Return the last measured `GRADIENT` or `DISPLACEMENT`, float32 (size,), maybe a copy."""

    def hold(self, which: int, vector: Tensor) -> None:
        """Replace the last measured `GRADIENT` or `DISPLACEMENT`."""

    @property
    def block_energies(self) -> Tensor:
        """Sums of |g|^2 in each block on this rank, float32 (block,); `measure` adds to them."""

    @property
    def window_folds(self) -> Tensor:
        """Folds of the sum of the window's gradients, float32 (part, fold, bucket).

        `measure` adds the weighted gradient, as `trajstore.sketch.window_sum` describes. The folds
        are the sums over the parts, each of which belongs to a thread or program.
        """

    @property
    def displacement_fold(self) -> Tensor:
        """Sum of the folds of the window's displacements, float32 (part, bucket).

        `measure` adds the fold of the displacement that the probes have, if the store has such sums.
        """

    def start_window(self, window: int, weights: Tensor) -> None:
        """Use the column signs of this window, and these weights, float32 (layer,)."""

    def start_sums(self, row_signs: Tensor | None) -> None:
        """Clear `block_energies` and both sums of folds; use these row signs, float32 (row,)."""

    def measure(
        self,
        vectors: Sequence[Tensor | None],
        number: int,
        row: Mapping[str, Tensor],
        last: LastStep | None = None,
    ) -> None:
        """Measure gradients and parameters; `number` selects the random signs.

        There is one vector per layer, in the shape of the layer; None stands for zeros. Fills
        the columns `before` of `trajstore.tracking.backends.columns.measured_columns`, and
        either the sketch and the probes, or, in exact mode, the vectors themselves. Sets the
        displacement to the parameters minus the anchor. A backend that joins updates first does
        what `after_step` does with `last`. It raises a `ValueError` only before it measures;
        after other errors the update is measured, or NaN.
        """

    def finish(self, *, waits: bool = True) -> None:
        """Complete the last rows with what other ranks have measured; until then they hold NaN.

        Methods that measure call this first. Raises a `RuntimeError` if a rank has ended, and unless
        it waits, if the results have not arrived; what they would tell stays NaN.
        """

    def after_step(self, last: LastStep) -> None:
        """Measure the update of a step, which leads to the parameters."""

    def parameters_unchanged_since_step(self) -> bool:
        """Return whether the parameters are the same, bit for bit, as in `after_step`."""

    def preserve_state(self) -> AbstractContextManager[None]:
        """Return a context that restores all results but rows on exit.

        These are the last gradient, the displacement, `block_energies` and both sums of folds.
        """

    def read_displacement(self, piece: slice) -> Tensor:
        """Return the parameters minus the anchor, and the anchor, in a piece, float32 (2, element).

        The displacement that was measured last is lost. The next call overwrites the result.
        """

    def fold_displacement(self) -> Tensor:
        """Return the fold of row 0 of the last `read_displacement` on this rank, float32 (bucket,).

        The caller may have changed that row. Not for exact mode.
        """

    def encode(
        self, fold: Tensor, rotation_signs: Tensor, *, signs: Tensor, scales: Tensor
    ) -> None:
        """Rotate and code a fold, float32 (bucket,), which it overwrites, like a sketch."""

    def probe_displacement(self) -> Tensor:
        """Return the probes of that row on this rank, float32 (probe,); not for exact mode."""
