"""The interface of backends, which measure gradients and updates on one device.

Flat vectors are float32 (size,), have the layout of `trajstore.tracking.placement.Placement`, and
are zero in the gaps between tensors. A row is one step of the buffers from
`trajstore.tracking.tracker.Tracker.allocate`; backends overwrite its tensors. Only
`parameters_unchanged_since_step` waits for an accelerator.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from trajstore.format.run_spec import RunSpec
from trajstore.tracking.past_anchors import PastAnchors
from trajstore.tracking.placement import Placement


class StepBackend(Protocol):
    """Measures the steps of one training run, and owns the vectors needed for that."""

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
    def frame(self) -> Tensor:
        """The displacement and the anchor, float32 (2, size); the tracker moves the anchor."""

    @property
    def last_gradient(self) -> Tensor:
        """The last measured gradient, a writable float32 view (size,)."""

    @property
    def block_energies(self) -> Tensor:
        """|g|^2 of the last measured gradient in each block on this rank, float32 (block,)."""

    @property
    def window_folds(self) -> Tensor:
        """Folds of the sum of the window's gradients, float32 (part, fold, bucket).

        `measure` adds the weighted gradient, as `trajstore.sketch.window_sum` describes. The folds
        are the sums over the parts, each of which belongs to a thread or program.
        """

    def start_window(self, window: int, weights: Tensor) -> None:
        """Use the column signs of this window, and these weights, float32 (layer,)."""

    def start_sum(self, row_signs: Tensor) -> None:
        """Clear `window_folds`, and use these row signs for it, float32 (row,)."""

    def measure(
        self, vectors: Sequence[Tensor | None], number: int, row: Mapping[str, Tensor]
    ) -> None:
        """Measure gradients and parameters; `number` selects the random signs.

        There is one vector per layer, in the shape of the layer; None stands for zeros. Fills
        the columns `before` of `trajstore.tracking.backends.columns.measured_columns`, and
        either the sketch and the probes, or, in exact mode, the vectors themselves. Sets the
        displacement to the parameters minus the anchor.
        """

    def after_step(self, row: Mapping[str, Tensor], gradient_energy: Tensor) -> None:
        """Measure the update, and add |g|^2 of the row to `gradient_energy`, float64 (layer,)."""

    def parameters_unchanged_since_step(self) -> bool:
        """Return whether the parameters are the same, bit for bit, as in `after_step`."""

    def preserve_state(self) -> AbstractContextManager[None]:
        """Return a context that restores all results but rows on exit.

        These are the last gradient, the displacement, `block_energies` and `window_folds`.
        """

    def read_displacement(self) -> None:
        """Set the displacement to the parameters minus the anchor."""

    def probe_displacement(self) -> Tensor:
        """Return the probes of the displacement, float32 (probe,); not for exact mode."""
