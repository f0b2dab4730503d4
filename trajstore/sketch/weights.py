"""Weights of the parameter tensors before they are folded together.

The variance of the sketch is ``|w g|^2 |v / w|^2``, summed over tensors within each
norm. It is smallest for ``w_l^2`` in proportion to ``|v_l| / |g_l|``: tensors that move far for
their gradients count more. The last window serves as a forecast of the path. Any positive
weights leave the estimate unbiased.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

FLOOR: Final = 0.03
"""Share of the overall rms added to that of each tensor, so that frozen or newly
awakened tensors get a finite weight."""


def tensor_weights(
    displacement_rms: npt.NDArray[np.float64],
    gradient_rms: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """Return weights, float32 (layer,), from the rms of a past window, (layer,)."""
    # w_l^2 = (u_l + FLOOR U) / (q_l + FLOOR Q) with U and Q the rms over all tensors; 1
    # everywhere if U or Q is 0 or not finite.
    share = sizes / sizes.sum()
    U = np.sqrt(share @ np.square(displacement_rms))
    Q = np.sqrt(share @ np.square(gradient_rms))
    with np.errstate(divide="ignore", invalid="ignore"):
        squares = (displacement_rms + FLOOR * U) / (gradient_rms + FLOOR * Q)
    usable = np.isfinite(squares) & (U > 0) & (Q > 0) & np.isfinite(U * Q)
    return np.sqrt(np.where(usable, squares, 1.0)).astype(np.float32)
