"""Weight the tensors of a gradient before they are folded together.

Let w_l be the weight of tensor l. The variance of a product of the sketch with v is proportional
to ``|w g|^2 |v / w|^2``, where each norm is over all tensors. It is smallest if ``w_l^2`` is
proportional to ``|v_l| / |g_l|``: a tensor that moves far for the size of its gradient gets more
weight. The movement in the previous window serves as a forecast of v. The estimate is unbiased
for any positive weights.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

FLOOR: Final = 0.03
"""Fraction of the overall rms that is added to the rms of each tensor, so that tensors that
are frozen, or have just begun to move, get finite weights."""


def tensor_weights(
    displacement_rms: npt.NDArray[np.float64],
    gradient_rms: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """Return the weights, float32 (layer,), from rms values of the previous window, (layer,)."""
    # w_l^2 = (u_l + FLOOR U) / (q_l + FLOOR Q): u_l and q_l are the rms of the displacement and
    # the gradient of tensor l, U and Q the rms over all tensors. If U or Q is 0 or not finite,
    # all weights are 1.
    share = sizes / sizes.sum()
    U = np.sqrt(share @ np.square(displacement_rms))
    Q = np.sqrt(share @ np.square(gradient_rms))
    with np.errstate(divide="ignore", invalid="ignore"):
        squares = (displacement_rms + FLOOR * U) / (gradient_rms + FLOOR * Q)
    usable = np.isfinite(squares) & (U > 0) & (Q > 0) & np.isfinite(U * Q)
    return np.sqrt(np.where(usable, squares, 1.0)).astype(np.float32)
