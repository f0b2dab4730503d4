"""Sketch gradients in torch, as `trajstore.sketch.sketch` does in NumPy."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from trajstore.sketch.sketch import Sketch
from trajstore.sketch_torch.fold import FoldOnDevice, Span, Weighted
from trajstore.sketch_torch.levels import Encoder
from trajstore.sketch_torch.packing import PackOnDevice
from trajstore.sketch_torch.rotation import Rotation
from trajstore.sketch_torch.signs import SignsOnDevice


class SketchOnDevice:
    """Sketches and folds the vectors in one of several buffers."""

    def __init__(
        self,
        sketch: Sketch,
        buffers: Sequence[Tensor],  # each float32 (vector, size); vector 0 is sketched
        spans: Sequence[Span],  # places of the elements in the buffers
        elements: npt.NDArray[np.int64],  # `Layout.packed_elements`
    ) -> None:
        device, numbers = buffers[0].device, sketch.numbers
        self._sketch = sketch
        self._fold: FoldOnDevice | PackOnDevice = (
            PackOnDevice(sketch.fold, buffers, spans, elements)
            if sketch.is_packed
            else FoldOnDevice(sketch.fold, buffers, spans)
        )
        self._rotation = Rotation(numbers, device, is_mixed=sketch.is_mixed)
        self._encoder = Encoder(sketch.bits_per_number, device)
        self._signs = SignsOnDevice(sum(sketch.sign_counts), device)
        self._buckets = buffers[0].new_zeros(numbers)
        self._rotation_signs = self._buckets

    def start_window(self, window: int) -> None:
        """Use the column signs of this window from now on."""
        self._fold.start_window(window)

    def start_sum(self, row_signs: Tensor, folds: Tensor) -> None:
        """Add weighted gradients to `folds` as well, see `trajstore.sketch.window_sum`."""
        assert isinstance(self._fold, FoldOnDevice)
        self._fold.start_sum(row_signs, folds)

    def fold(self, buffer_index: int, row_signs: Tensor, out: Tensor) -> None:
        """Add the folds of all vectors in a buffer to `out`, float32 (vector, bucket)."""
        self._fold(buffer_index, row_signs, out)

    def __call__(
        self,
        buffer_index: int,  # which buffer to fold
        step: int,  # optimizer step, which determines the random signs
        block_weights: Tensor,  # float32 (block,): weights for the sketched vector
        *,
        fold_signs: Tensor,  # float32 (row,): row signs of the unweighted folds
        folds: Tensor,  # float32 (vector, bucket): the unweighted folds are added to it
    ) -> Tensor:
        """Fold all vectors; return the weighted fold of the first vector, float32 (bucket,)."""
        # The returned fold covers only the elements on this rank; `encode` codes it after the
        # caller has summed it over the ranks.
        step_signs = self._signs(step, self._sketch.seed)
        self._rotation_signs, rows = step_signs.split(self._sketch.sign_counts)
        self._buckets.zero_()
        weighted = Weighted(block_weights, rows, self._buckets)
        self._fold(buffer_index, fold_signs, folds, weighted)
        return self._buckets

    def encode(self, *, signs: Tensor, scales: Tensor) -> None:
        """Write codes, uint8 (bits / 8,), and scales, float32 (block,), of the weighted fold."""
        self.encode_fold(
            self._buckets, self._rotation_signs, signs=signs, scales=scales
        )

    def encode_fold(
        self, fold: Tensor, rotation_signs: Tensor, *, signs: Tensor, scales: Tensor
    ) -> None:
        """Rotate a fold, float32 (bucket,), in place, and write its codes and scales."""
        self._rotation(fold, rotation_signs)
        self._encoder(fold, signs=signs, scales=scales)
