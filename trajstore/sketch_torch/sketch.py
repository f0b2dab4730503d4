"""Sketch of a gradient in torch, as in `trajstore.sketch.sketch`."""

from collections.abc import Sequence

from torch import Tensor

from trajstore.sketch.sketch import Sketch
from trajstore.sketch_torch import onebit as onebit_torch
from trajstore.sketch_torch.fold import FoldOnDevice, Span, Weighted
from trajstore.sketch_torch.rotation import Rotation
from trajstore.sketch_torch.signs import SignsOnDevice


class SketchOnDevice:
    """Sketches and folds the rows of one of several buffers."""

    def __init__(
        self,
        sketch: Sketch,
        buffers: Sequence[
            Tensor
        ],  # float32 (vector, size); the first vector is sketched
        spans: Sequence[Span],  # elements of the vectors in the buffers
    ) -> None:
        device = buffers[0].device
        self._sketch = sketch
        self._fold = FoldOnDevice(sketch.fold, buffers, spans)
        self._rotation = Rotation(sketch.bits, device)
        self._signs = SignsOnDevice(sum(sketch.sign_counts), device)
        self._buckets = buffers[0].new_zeros(sketch.bits)
        self._rotation_signs = self._buckets

    def start_window(self, window: int) -> None:
        """Use the column signs of a window."""
        self._fold.start_window(window)

    def fold(self, which: int, row_signs: Tensor, out: Tensor) -> None:
        """Add folds of all vectors of a buffer to `out`, float32 (vector, bucket)."""
        self._fold(which, row_signs, out)

    def __call__(
        self,
        which: int,  # index of the buffer
        step: int,  # selects the random signs
        block_weights: Tensor,  # float32 (block,): weights of the sketched vector
        *,
        fold_signs: Tensor,  # float32 (row,): row signs of the folds
        folds: Tensor,  # float32 (vector, bucket): folds are added to it
    ) -> Tensor:
        """Fold all vectors; return the weighted fold of the first, float32 (bucket,)."""
        # `encode` codes the fold that is returned, which holds this rank's elements only.
        step_signs = self._signs(step, self._sketch.seed)
        self._rotation_signs, rows = step_signs.split(self._sketch.sign_counts)
        self._buckets.zero_()
        weighted = Weighted(block_weights, rows, self._buckets)
        self._fold(which, fold_signs, folds, weighted)
        return self._buckets

    def encode(self, *, signs: Tensor, scales: Tensor) -> None:
        """Write signs, uint8 (bits / 8,), and scales, float32 (block,), of the last fold."""
        self._rotation(self._buckets, self._rotation_signs)
        onebit_torch.encode(self._buckets, signs=signs, scales=scales)
