"""Weights of the sketch in torch, as in `trajstore.sketch.weights`."""

from torch import Tensor

from trajstore.sketch.weights import FLOOR


def tensor_weights(
    displacement_rms: Tensor, gradient_rms: Tensor, sizes: Tensor
) -> Tensor:
    """Return weights, float32 (layer,), from the float64 rms of a past window, (layer,)."""
    share = sizes / sizes.sum()
    U = (share @ displacement_rms.square()).sqrt()
    Q = (share @ gradient_rms.square()).sqrt()
    squares = (displacement_rms + FLOOR * U) / (gradient_rms + FLOOR * Q)
    usable = squares.isfinite() & (U > 0) & (Q > 0) & (U * Q).isfinite()
    return squares.masked_fill(~usable, 1.0).sqrt().float()
