"""Add up what is known of a window at its end: its sum of gradients, and energies by block."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trajstore.format.arrays import n_blocks
from trajstore.format.run_spec import RunSpec
from trajstore.sketch.displacement_sum import DisplacementSum, middle
from trajstore.sketch.sketch import probes_of, sketch_of
from trajstore.sketch.window_sum import LEAST_STEPS, WindowSum
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
    # Sketch of the sum of the window's displacements: codes, uint8 (byte,), and scales, float32
    # (scale,); see `trajstore.sketch.displacement_sum`.
    displacement_codes: Tensor
    displacement_scales: Tensor


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
        # Number of elements and index of the layer of each block, (block,).
        layout = placement.layout
        self._blocks = (
            upload(layout.elements_of_block.astype(np.float64), device),
            upload(layout.layer_of_block, device),
        )
        self._sketch = sketch_of(spec, placement.layout)
        self._probes = probes_of(spec, placement.layout)
        self.window = 0
        """Number of the window."""
        self.n_steps = 0
        """Number of measured steps of the window."""
        self.least_steps = LEAST_STEPS
        """Number of steps of the shortest window that has sums."""
        self._window_sum: WindowSum | None = None
        # Whether the sums are those of all steps of the window.
        self._is_whole = False
        # What ranks had summed before the recording was resumed; empty but on the first rank.
        self._earlier: Mapping[str, Tensor] = {}

    def start(self, window: int) -> None:
        """Begin a window, whose sums are empty."""
        self.window, self.n_steps, self._is_whole = window, 0, True
        self._earlier = {}
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
        spec, folds = self._spec, self._folds()
        n = spec.sketch_numbers
        signs = torch.zeros(
            (len(folds), n // 8), dtype=torch.uint8, device=self._device
        )
        scales = folds.new_zeros(len(folds), n_blocks(n))
        # Zeros take hardly any bytes.
        is_long = self.n_steps >= self.least_steps
        if self._window_sum is not None and is_long:
            rotation_signs = upload(
                self._window_sum.rotation_signs.copy(), self._device
            )
            for i, fold in enumerate(folds):
                self._backend.encode(
                    fold, rotation_signs[i], signs=signs[i], scales=scales[i]
                )
        energies = self._relative_energies()
        codes, code_scales = self._displacements(is_long=is_long)
        if not self._is_whole:
            energies.fill_(torch.nan)
        if not (self._is_whole and is_long):
            for total in (scales, code_scales):
                total.fill_(torch.nan)
        return EndedWindow(energies, signs, scales, codes, code_scales)

    def _displacements(self, *, is_long: bool) -> tuple[Tensor, Tensor]:
        """Return codes and scales of the sum of the window's displacements."""
        spec, n = self._spec, self._spec.sketch_numbers
        codes = torch.zeros(
            spec.sketch_bits // 8, dtype=torch.uint8, device=self._device
        )
        scales = torch.zeros(n_blocks(n), device=self._device, dtype=torch.float32)
        if spec.displacement_sum and is_long:
            end = self._end()
            self._placement.all_reduce(end)
            fold = self._displacement_fold()
            fold[: len(end)] -= middle(self.n_steps) * end
            total = DisplacementSum(
                sketch=self._sketch, probes=self._probes, window=self.window
            )
            drawn = upload(total.rotation_signs.copy(), self._device)
            self._backend.encode(fold, drawn, signs=codes, scales=scales)
        return codes, scales

    def _end(self) -> Tensor:
        """Return the fold of the displacement at the end on this rank, float32 (bucket,)."""
        fold: Tensor | float = 0.0
        for piece in self._backend.pieces:
            self._backend.read_displacement(piece)
            fold += self._backend.fold_displacement()
        assert isinstance(fold, Tensor)
        return fold

    def _relative_energies(self) -> Tensor:
        """Return the energies per element, relative to the largest of the layer, (block,)."""
        layout, density = self._placement.layout, self._energies().double()
        sizes, layers = self._blocks
        density /= sizes
        largest = density.new_zeros(len(layout.names))
        largest.scatter_reduce_(0, layers, density, "amax")
        return (density / largest.clamp(min=TINY)[layers]).half()

    def _folds(self) -> Tensor:
        """Return the folds of all ranks, float32 (fold, bucket)."""
        return self._of_all_ranks("folds", self._backend.window_folds.sum(0))

    def _displacement_fold(self) -> Tensor:
        """Return the fold of all ranks, float32 (bucket,)."""
        return self._of_all_ranks(
            "displacements", self._backend.displacement_fold.sum(0)
        )

    def _of_all_ranks(self, name: str, total: Tensor) -> Tensor:
        self._placement.all_reduce(total)
        if name in self._earlier:
            total += self._earlier[name].sum(0).to(total.device)
        return total

    def _energies(self) -> Tensor:
        """Return the energies of all blocks, float32 (block,)."""
        energies = self._placement.block_sum(self._backend.block_energies)
        if "energies" in self._earlier:
            energies = energies + self._earlier["energies"].to(energies.device)
        return energies

    def state(self) -> dict[str, Tensor] | None:
        """Return the sums so far for a checkpoint; None if they are not known."""
        # All ranks call this together; the first rank's result is that of all ranks.
        if not self._is_whole:
            return None
        backend = self._backend
        sums = {"energies": backend.block_energies, "folds": backend.window_folds}
        if self._spec.displacement_sum:
            sums["displacements"] = backend.displacement_fold
        if self._placement.group is not None:
            sums = {"energies": self._energies(), "folds": self._folds()[None]}
            if self._spec.displacement_sum:
                sums["displacements"] = self._displacement_fold()[None]
        return {name: total.detach().cpu().clone() for name, total in sums.items()}

    def restore(
        self, window: int, n_steps: int, state: Mapping[str, Tensor] | None
    ) -> None:
        """Continue a window after `n_steps`, with the result of `state` there."""
        # Without sharding, the sums continue with the same bits.
        self.start(window)
        self.n_steps, self._is_whole = n_steps, state is not None
        if state is None:
            return
        if self._placement.group is not None:
            self._earlier = state
            return
        self._backend.block_energies.copy_(state["energies"])
        _restore_parts(self._backend.window_folds, state["folds"])
        if self._spec.displacement_sum:
            _restore_parts(self._backend.displacement_fold, state["displacements"])


def _restore_parts(folds: Tensor, stored: Tensor) -> None:
    """Copy the stored parts of a sum to `folds`."""
    if stored.shape == folds.shape:
        folds.copy_(stored)
    else:
        # The work was divided otherwise; the sum over the parts is the same.
        folds[0] = stored.sum(0)
