"""The torch twin of `trajstore.sketch.weights`."""

from torch import Tensor

from trajstore.sketch.weights import FLOOR


def tensor_weights(
    displacement_rms: Tensor, gradient_rms: Tensor, sizes: Tensor
) -> Tensor:
    """See `trajstore.sketch.weights.tensor_weights`; float64 in, float32 out, any device."""
    share = sizes / sizes.sum()
    U = (share @ displacement_rms.square()).sqrt()
    Q = (share @ gradient_rms.square()).sqrt()
    squares = (displacement_rms + FLOOR * U) / (gradient_rms + FLOOR * Q)
    usable = squares.isfinite() & (U > 0) & (Q > 0) & (U * Q).isfinite()
    return squares.masked_fill(~usable, 1.0).sqrt().float()
