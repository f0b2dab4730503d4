"""Scale invariance: layers whose scale does not affect the loss."""

from typing import Final

import numpy as np
import xarray as xr

from analyzers._engine.labels import describe
from analyzers._engine.tables import check_basis, tables
from analyzers.curvature.defaults import TOLERANCE
from analyzers.curvature.update_products import is_plain_descent
from trajstore.format.arrays import STEP
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.run import Run

TABLES: Final = ("grad_sq", "param_sq", "grad_dot_param", "update_sq")

LONG_NAMES: Final = {
    "cosine": "cosine of a layer and its gradient",
    "cosine_mean": "mean over the steps of the cosine of a layer and its gradient",
    "cosine_rms": "root mean square of the cosine of a layer and its gradient",
    "cosine_max": "largest |cosine| of a layer and its gradient",
    "is_invariant": "whether the loss does not depend on the scale of the layer",
    "growth": "squared norm of the last iterate minus that of the first",
    "expected_growth": "growth of the squared norm to expect if the layer is invariant",
}


@accepts_path
def scale_invariance(run: Run, *, tolerance: float = TOLERANCE) -> xr.Dataset:
    r"""Cosine of every layer and its gradient, and the growth of the layer's norm.

    If the loss L does not depend on the scale of a layer w, for instance because batch
    normalisation follows, then :math:`\langle w, \nabla_w L \rangle = 0` by Euler's
    theorem. A step of plain SGD without weight decay, with the learning rate
    :math:`\eta_k`, can then only lengthen the layer [1]_:

    .. math:: |w_{k+1}|^2 = |w_k|^2 + \eta_k^2 |g_k|^2 .

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    tolerance : float, default: 1e-4
        A layer counts as invariant if its ``|cosine|`` is at most this in every step.

    Returns
    -------
    xarray.Dataset
        Lazy. Dimensions ``step``, with the coordinates ``epoch`` and ``iteration``, and
        ``layer``, the parameter tensors. No variable has units. ``cosine`` (step, layer) is
        :math:`\langle w, g \rangle / (|w| |g|)`, NaN where a norm is 0. By layer:
        ``cosine_mean``, the mean; ``cosine_rms``, the root mean square; ``cosine_max``, the
        largest ``|cosine|``; ``is_invariant``, whether ``cosine_max`` is at most `tolerance`;
        ``growth``, :math:`|w_{K-1}|^2 - |w_0|^2` for K recorded iterates; and
        ``expected_growth``, the sum of :math:`\eta_k^2 |g_k|^2` over the steps that
        lead from the first of these iterates to the last. ``expected_growth`` is NaN unless
        every update is -lr times the gradient, that is, without momentum, weight decay or
        adaptive scaling.

    Raises
    ------
    ValueError
        If `tolerance` is not between 0 and 1, or if the run was recorded with ``basis=0``.

    Notes
    -----
    The cosines are computed from recorded products; nothing is estimated. The products,
    like the gradients themselves, carry rounding errors of about :math:`10^{-6} |w| |g|`,
    and the constant that batch normalisation adds to the variance makes the loss depend
    slightly on the scale. A bias or a layer with few elements may be orthogonal to its
    gradient by chance in one step, but not in all steps. For this reason, the largest
    ``|cosine|`` decides whether a layer counts as invariant. A deviation of about
    :math:`10^{-7} |w|^2` from the expected growth is rounding.

    References
    ----------
    .. [1] T. van Laarhoven, "L2 Regularization versus Batch and Weight Normalization",
       2017, arXiv 1706.05350.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"`tolerance` must be between 0 and 1, got {tolerance}.")
    check_basis(run, "Scale invariance")
    steps = tables(run, *TABLES).astype(np.float64)
    length = (steps["grad_sq"] * steps["param_sq"]) ** 0.5
    cosine = steps["grad_dot_param"] / length.where(length > 0)
    largest = abs(cosine).max(STEP)
    squares = steps["param_sq"]
    moved = steps["update_sq"].isel({STEP: slice(None, -1)}).sum(STEP)
    values = {
        "cosine": cosine,
        "cosine_mean": cosine.mean(STEP),
        "cosine_rms": (cosine**2).mean(STEP) ** 0.5,
        "cosine_max": largest,
        "is_invariant": largest <= tolerance,
        "growth": squares.isel({STEP: -1}, drop=True)
        - squares.isel({STEP: 0}, drop=True),
        "expected_growth": moved.where(is_plain_descent(run)),
    }
    attributes = {"run": run.location, "tolerance": tolerance}
    return describe(xr.Dataset(values, attrs=attributes), LONG_NAMES)
