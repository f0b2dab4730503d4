"""The torch twin of `trajstore.sketch`: what training runs in every step."""

import torch
from torch import Tensor

from trajstore import onebit_torch
from trajstore.fold_torch import FoldOnDevice, Weighted
from trajstore.rotation_torch import Rotation
from trajstore.signs_torch import SignsOnDevice
from trajstore.sketch import Sketch


class SketchOnDevice:
    """Sketches and probes the rows of one buffer.

    Parameters
    ----------
    sketch : Sketch
        What to compute.
    buffer : torch.Tensor
        float32, (vector, padded size); the first vector is sketched. See `FoldOnDevice`.
    """

    def __init__(self, sketch: Sketch, buffer: Tensor) -> None:
        self._sketch = sketch
        self._fold = FoldOnDevice(sketch.fold, buffer)
        self._rotation = Rotation(sketch.bits, buffer.device)
        self._signs = SignsOnDevice(sum(sketch.sign_counts), buffer.device)
        self._second_round = torch.from_numpy(sketch.second_round).to(buffer.device)
        self._buckets = buffer.new_zeros(sketch.bits)

    def fold(self, row_signs: Tensor, out: Tensor) -> None:
        """Add folds of all vectors, with the same row signs, to `out`."""
        self._fold(row_signs, out)

    def __call__(
        self,
        step: int,
        block_weights: Tensor,
        *,
        signs: Tensor,
        scales: Tensor,
        fold_signs: Tensor,
        folds: Tensor,
    ) -> None:
        """Sketch the first vector and fold all of them.

        Parameters
        ----------
        step : int
            Optimizer step; selects the random signs.
        block_weights : torch.Tensor
            float32, one for each block: weights of the sketched vector.
        signs : torch.Tensor
            uint8, (bits / 8,); overwritten with the sketch's signs.
        scales : torch.Tensor
            float32, (block,); overwritten with its scales.
        fold_signs : torch.Tensor
            float32, (row,): row signs of the folds.
        folds : torch.Tensor
            float32, (vector, bucket): the folds are added to it.
        """
        step_signs = self._signs(step, self._sketch.seed)
        first, rows = step_signs.split(self._sketch.sign_counts)
        self._buckets.zero_()
        weighted = Weighted(block_weights, rows, self._buckets)
        self._fold(fold_signs, folds, weighted)
        self._rotation(self._buckets, first, self._second_round)
        onebit_torch.encode(self._buckets, signs=signs, scales=scales)
