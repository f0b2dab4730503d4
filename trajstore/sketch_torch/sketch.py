"""The torch twin of `trajstore.sketch.sketch`: what training runs in every step."""

from collections.abc import Sequence

from torch import Tensor

from trajstore.sketch.sketch import Sketch
from trajstore.sketch_torch import onebit as onebit_torch
from trajstore.sketch_torch.fold import FoldOnDevice, Span, Weighted
from trajstore.sketch_torch.rotation import Rotation
from trajstore.sketch_torch.signs import SignsOnDevice


class SketchOnDevice:
    """Sketches and probes the rows of one of some buffers.

    Parameters
    ----------
    sketch : Sketch
        What to compute.
    buffers : sequence of torch.Tensor
        float32, (vector, size); the first vector is sketched. See `FoldOnDevice`.
    spans : sequence of Span
        What of the vectors the buffers hold.
    """

    def __init__(
        self, sketch: Sketch, buffers: Sequence[Tensor], spans: Sequence[Span]
    ) -> None:
        device = buffers[0].device
        self._sketch = sketch
        self._fold = FoldOnDevice(sketch.fold, buffers, spans)
        self._rotation = Rotation(sketch.bits, device)
        self._signs = SignsOnDevice(sum(sketch.sign_counts), device)
        self._buckets = buffers[0].new_zeros(sketch.bits)
        self._rotation_signs = self._buckets

    def start_window(self, window: int) -> None:
        """Take the column signs of a window."""
        self._fold.start_window(window)

    def fold(self, which: int, row_signs: Tensor, out: Tensor) -> None:
        """Add folds of all vectors of a buffer, with the same row signs, to `out`."""
        self._fold(which, row_signs, out)

    def __call__(
        self,
        which: int,
        step: int,
        block_weights: Tensor,
        *,
        fold_signs: Tensor,
        folds: Tensor,
    ) -> Tensor:
        """Fold the first vector, weighted, for `encode`; and all of them.

        Parameters
        ----------
        which : int
            Index of the buffer.
        step : int
            Optimizer step; selects the random signs.
        block_weights : torch.Tensor
            float32, one for each block: weights of the sketched vector.
        fold_signs : torch.Tensor
            float32, (row,): row signs of the folds.
        folds : torch.Tensor
            float32, (vector, bucket): the folds are added to it.

        Returns
        -------
        torch.Tensor
            float32, (bucket,): the weighted fold of what lies here.
        """
        step_signs = self._signs(step, self._sketch.seed)
        self._rotation_signs, rows = step_signs.split(self._sketch.sign_counts)
        self._buckets.zero_()
        weighted = Weighted(block_weights, rows, self._buckets)
        self._fold(which, fold_signs, folds, weighted)
        return self._buckets

    def encode(self, *, signs: Tensor, scales: Tensor) -> None:
        """Rotate the weighted fold, and keep its signs.

        Parameters
        ----------
        signs : torch.Tensor
            uint8, (bits / 8,); overwritten with the sketch's signs.
        scales : torch.Tensor
            float32, (block,); overwritten with its scales.
        """
        self._rotation(self._buckets, self._rotation_signs)
        onebit_torch.encode(self._buckets, signs=signs, scales=scales)
