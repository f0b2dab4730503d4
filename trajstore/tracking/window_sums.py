"""Add up what is known of a window at its end: its sum of gradients, and energies by block."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trajstore.format.arrays import n_blocks
from trajstore.format.run_spec import RunSpec
from trajstore.sketch.sketch import sketch_of
from trajstore.sketch.window_sum import WindowSum
from trajstore.sketch_torch import onebit as onebit_torch
from trajstore.sketch_torch.rotation import Rotation
from trajstore.sketch_torch.uploads import upload
from trajstore.tracking.backends.protocol import StepBackend
from trajstore.tracking.placement import Placement

TINY: Final = 1e-37
"""A number below every positive density, which keeps the density of a tensor of zeros 0."""


class EndedWindow(NamedTuple):
    """What is known of a window at its end, on the device; NaN where it is not known."""

    # Energy of the gradient per element of each block, relative to the largest of the layer,
    # float16 (block,); the mean over the steps of the window.
    energies: Tensor
    # Sketch of the sum of the window's gradients: signs, uint8 (fold, byte), and scales, float32
    # (fold, scale); see `trajstore.sketch.window_sum`.
    sum_signs: Tensor
    sum_scales: Tensor


class WindowSums:
    """Adds up the gradients of a window in the folds of a backend, and their energies."""

    def __init__(
        self,
        spec: RunSpec,
        placement: Placement,
        backend: StepBackend,
        device: torch.device,
    ) -> None:
        self._spec, self._placement, self._backend = spec, placement, backend
        self._device = device
        self._sketch = sketch_of(spec, placement.layout)
        self._rotation = Rotation(
            self._sketch.numbers, device, is_mixed=self._sketch.is_mixed
        )
        self.window = 0
        """Number of the window."""
        self._window_sum: WindowSum | None = None
        # Whether the sums are those of all steps of the window.
        self._is_whole = False

    def start(self, window: int) -> None:
        """Begin a window, whose sums are empty."""
        self.window, self._is_whole = window, True
        row_signs: Tensor | None = None
        if self._spec.window_folds:
            sketch = replace(self._sketch, window=window)
            n_folds = self._spec.window_folds
            self._window_sum = WindowSum(sketch=sketch, n_folds=n_folds)
            row_signs = upload(self._window_sum.row_signs.copy(), self._device)
        self._backend.start_sums(row_signs)

    def forget(self) -> None:
        """Note that the sums of this window are not those of its steps."""
        self._is_whole = False

    def end(self) -> EndedWindow:
        """Return what is known of the window that ends; all ranks call this together."""
        spec, folds = self._spec, self._backend.window_folds.sum(0)
        n = spec.sketch_numbers
        signs = torch.zeros(
            (len(folds), n // 8), dtype=torch.uint8, device=self._device
        )
        scales = folds.new_zeros(len(folds), n_blocks(n))
        self._placement.all_reduce(folds)
        if self._window_sum is not None:
            rotation_signs = upload(
                self._window_sum.rotation_signs.copy(), self._device
            )
            for i, fold in enumerate(folds):
                self._rotation(fold, rotation_signs[i])
                onebit_torch.encode(fold, signs=signs[i], scales=scales[i])
        energies = self._relative_energies()
        if not self._is_whole:
            energies.fill_(torch.nan)
            scales.fill_(torch.nan)
        return EndedWindow(energies, signs, scales)

    def _relative_energies(self) -> Tensor:
        """Return the energies per element, relative to the largest of the layer, (block,)."""
        layout, energies = self._placement.layout, self._backend.block_energies
        density = self._placement.block_sum(energies).double()
        density /= upload(layout.elements_of_block.astype(np.float64), energies.device)
        layers = upload(layout.layer_of_block, energies.device)
        largest = density.new_zeros(len(layout.names))
        largest.scatter_reduce_(0, layers, density, "amax")
        return (density / largest.clamp(min=TINY)[layers]).half()

    def state(self) -> dict[str, Tensor] | None:
        """Return the sums so far for a checkpoint; None if they are not known here."""
        # Sums over ranks would not be the same bits after resuming.
        if not self._is_whole or self._placement.group is not None:
            return None
        backend = self._backend
        sums = {"energies": backend.block_energies, "folds": backend.window_folds}
        return {name: total.detach().cpu().clone() for name, total in sums.items()}

    def restore(self, window: int, state: Mapping[str, Tensor] | None) -> None:
        """Continue in the middle of a window, with the result of `state` there."""
        self.start(window)
        self._is_whole = state is not None
        if state is not None:
            self._backend.block_energies.copy_(state["energies"])
            folds, stored = self._backend.window_folds, state["folds"]
            if stored.shape == folds.shape:
                folds.copy_(stored)
            else:
                # The work was divided otherwise; the sum over the parts is the same.
                folds[0] = stored.sum(0)
