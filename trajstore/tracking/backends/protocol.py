"""What a step backend does: measure gradients and updates on one device.

The vectors are float32 of shape (size,), laid out as `trajstore.tracking.placement.Placement`
says, and zero in the gaps. A row is one step of `trajstore.tracking.tracker.Tracker.allocate`;
backends overwrite its tensors. No method waits for an accelerator, except
`parameters_unchanged_since_step`.
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
    """Measures the steps of one training run; owns the vectors that this takes."""

    def __init__(
        self,
        parameters: Sequence[Tensor | None],
        placement: Placement,
        spec: RunSpec,
        past: PastAnchors,
        device: torch.device,
    ) -> None:
        """Follow these parameters, one for each layer; None where other ranks have it."""

    @property
    def frame(self) -> Tensor:
        """Displacement and anchor, float32 (2, size); the tracker moves the anchor."""

    @property
    def last_gradient(self) -> Tensor:
        """Last measured gradient, a writable float32 view (size,)."""

    def start_window(self, window: int, weights: Tensor) -> None:
        """Use the column signs of a window, and weights, float32 (layer,)."""

    def measure(
        self, vectors: Sequence[Tensor | None], number: int, row: Mapping[str, Tensor]
    ) -> None:
        """Measure gradients and parameters; `number` selects the random signs.

        There is one vector for each layer, in its shape; None reads as zeros. Fills the
        columns of `trajstore.tracking.backends.columns.columns_before`, and either the
        sketch and the probes, or the vectors themselves. Reads the displacement.
        """

    def after_step(self, row: Mapping[str, Tensor], gradient_energy: Tensor) -> None:
        """Measure the update, and add |g|^2 of the row to a total, float64 (layer,)."""

    def parameters_unchanged_since_step(self) -> bool:
        """Whether the parameters have the bits that `after_step` saw."""

    def preserve_state(self) -> AbstractContextManager[None]:
        """Restore the last gradient and the displacement on exit."""

    def read_displacement(self) -> None:
        """Set the displacement to the parameters minus the anchor."""

    def probe_displacement(self) -> Tensor:
        """Return probes of the displacement, float32 (probe,); not in exact mode."""
