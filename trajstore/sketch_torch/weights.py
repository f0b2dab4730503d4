"""Compute the weights of the sketch in torch, as in `trajstore.sketch.weights`."""

from torch import Tensor

from trajstore.sketch.weights import FLOOR


def tensor_weights(
    displacement_rms: Tensor, gradient_rms: Tensor, sizes: Tensor
) -> Tensor:
    """Return the weights, float32 (layer,), from rms values of the previous window."""
    # The rms values are float64 (layer,).
    share = sizes / sizes.sum()
    U = (share @ displacement_rms.square()).sqrt()
    Q = (share @ gradient_rms.square()).sqrt()
    squares = (displacement_rms + FLOOR * U) / (gradient_rms + FLOOR * Q)
    usable = squares.isfinite() & (U > 0) & (Q > 0) & (U * Q).isfinite()
    return squares.masked_fill(~usable, 1.0).sqrt().float()
