"""Hold the folds of a step on a CUDA device, and encode them as sketch and probes."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from trajstore.format.layout import Layout
from trajstore.format.run_spec import RunSpec
from trajstore.sketch.fold import Fold
from trajstore.sketch.sketch import probes_of, sketch_of
from trajstore.sketch_torch.levels import Encoder
from trajstore.sketch_torch.probes import ProbesOnDevice
from trajstore.sketch_torch.rotation import Rotation
from trajstore.sketch_torch.uploads import upload
from trajstore.tracking.backends.triton_tables import SEGMENT


class Folding:
    """Holds the folds of a step on the device, and encodes them as sketch and probes."""

    def __init__(
        self,
        layout: Layout,
        spec: RunSpec,
        programs: tuple[int, int],  # numbers of tiles (of columns) and parts (of rows)
        device: torch.device,
    ) -> None:
        self.sketch = sketch_of(spec, layout)
        fold, numbers = self.sketch.fold, self.sketch.numbers
        self.probes = ProbesOnDevice(probes_of(spec, layout), 2, device)
        # Kernels fold a packed vector as one row that still has gaps; `add_up` removes them.
        self._device = device
        self._elements: Tensor | None = None
        self._size = layout.size
        if self.sketch.is_packed:
            self._elements = upload(layout.packed_elements, device)
        self.probe_columns = self.columns(fold)
        n_tiles, n_parts = programs
        self.folds = torch.zeros(
            (n_parts, 3, n_tiles * SEGMENT), device=device, dtype=torch.float32
        )
        counts = self.sketch.sign_counts
        self.step_signs = torch.empty(sum(counts), device=device, dtype=torch.float32)
        self._rotation_signs, self.row_signs = self.step_signs.split(counts)
        self._rotation = Rotation(numbers, device, is_mixed=self.sketch.is_mixed)
        self._encoder = Encoder(self.sketch.bits_per_number, device)
        self._buckets = torch.zeros(numbers, device=device, dtype=torch.float32)

    def columns(self, fold: Fold) -> Tensor:
        """Return the column signs of a fold as kernels read them, int8 (sign,)."""
        sequence = upload(fold.column_sequence.astype(np.int8), self._device)
        if self._elements is None:
            return sequence
        spread = sequence.new_zeros(self._size)
        spread[self._elements] = sequence
        return spread

    def add_up(self, folds: Tensor, out: Tensor) -> None:
        """Add up the folds of all parts, (part, ..., column); write to `out`, (..., bucket)."""
        if self._elements is None:
            torch.sum(folds[..., : out.shape[-1]], 0, out=out)
        else:
            out.copy_(folds[0].index_select(-1, self._elements))

    def write(self, row: Mapping[str, Tensor], displacements: Tensor) -> None:
        """Encode the folds as sketch and probes in a row; add that of the displacement."""
        width = self.sketch.fold.width
        self.add_up(self.folds[:, :2], self.probes.folds)
        if displacements.numel():
            displacements[0, :width] += self.probes.folds[1]
        self.probes.write(row["probes"])
        self._buckets[width:] = 0
        self.add_up(self.folds[:, 2], self._buckets[:width])
        self.encode(
            self._buckets,
            self._rotation_signs,
            signs=row["signs"],
            scales=row["scales"],
        )

    def encode(
        self, fold: Tensor, rotation_signs: Tensor, *, signs: Tensor, scales: Tensor
    ) -> None:
        """Rotate a fold, float32 (bucket,), in place, and write its codes and scales."""
        self._rotation(fold, rotation_signs)
        self._encoder(fold, signs=signs, scales=scales)
