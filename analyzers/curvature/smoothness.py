"""Smoothness: the change of the gradient over the change of the parameters."""

from typing import Any, Final

import numpy as np
import xarray as xr

from analyzers._engine.labels import describe
from analyzers._engine.tables import tables
from analyzers.curvature.update_products import is_plain_descent
from trajstore.format.arrays import LAYER, STEP
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.run import Run

CHANGE_RTOL: Final = 2.0**-19
"""Fraction of |g_(k-1)|^2 + |g_k|^2 below which |g_k - g_(k-1)|^2 is rounding."""

LEAST_CHANGE: Final = 100.0
"""Machine epsilons of the largest gradient below which the change of a gradient is rounding."""

LONG_NAMES: Final = {
    "smoothness": (
        "change of the gradient over the change of the parameters",
        "|g_k - g_(k-1)| / |u_(k-1)|",
    ),
    "curvature": (
        "change of the gradient along the update",
        "<g_k - g_(k-1), u_(k-1)> / |u_(k-1)|^2",
    ),
}


@accepts_path
def smoothness(
    run: Run, *, measurement: str | None = None, layers: bool = False
) -> xr.Dataset:
    r"""Change of the gradient divided by the change of the parameters, by step.

    With the update :math:`u_k = x_{k+1} - x_k`, smoothness is

    .. math:: \frac{|g_k - g_{k-1}|}{|x_k - x_{k-1}|}
              = \frac{\sqrt{|g_k|^2 + |g_{k-1}|^2 - 2 \langle g_k, g_{k-1} \rangle}}
                     {|u_{k-1}|} .

    It is computed from recorded products; nothing is estimated. With `measurement`,
    :math:`g_k` is the gradient of the examples of step k - 1, evaluated again after that
    step. The Lipschitz constant of a gradient bounds this ratio from above [1]_.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    measurement : str, optional
        Name of the measurement that, after a step, repeats the step's examples, such as
        ``"same_batch"``. Record it by ``traj-train run NAME --same-batch-every 10``, or in
        your own loop by ``recorder.measure("same_batch")`` between two steps, after a
        backward pass over the examples of the previous step. Default: compare the gradients
        of neighbouring steps.
    layers : bool, default: False
        Separate the layers: restrict numerator and denominator to each parameter tensor,
        although its gradient also changes because the other tensors move.

    Returns
    -------
    xarray.Dataset
        Lazy, float64. Dimensions ``step``, the step of the later gradient, with the
        coordinates ``epoch`` and ``iteration``, and ``layer`` if `layers` is true.
        ``smoothness`` is the ratio above. ``curvature`` is the change of the gradient along
        the update, :math:`\langle g_k - g_{k-1}, u_{k-1} \rangle / |u_{k-1}|^2`: the
        second derivative of the loss along the update, averaged over the update. It is NaN
        unless every update is -lr times the gradient. Both are NaN at the first step, after
        an update of 0, and where the change of the gradient is below its rounding error:
        about one thousandth of the gradient, or 100 machine epsilons of the largest gradient of
        the run, as after it has converged to rounding.

    Raises
    ------
    KeyError
        If the measurement does not exist.

    Notes
    -----
    *For the same examples* (`measurement`), smoothness is a lower bound of the Lipschitz
    constant of the gradient of *their* loss on the segment between the iterates. It does
    not bound the Lipschitz constant of the whole loss, which may be smaller or larger. It
    shows only the curvature in the direction of the update. This curvature is close to the
    largest eigenvalue of the Hessian if the update points along its eigenvector.

    *For different examples* (the default), smoothness is neither an upper nor a lower bound
    unless the run uses the full batch. Let f be the whole loss, and :math:`\Sigma_k` the
    covariance of the gradient. If batches are independent,

    .. math:: E |g_k - g_{k-1}|^2 \approx |\nabla f(x_k) - \nabla f(x_{k-1})|^2
              + \mathrm{tr}\, \Sigma_k + \mathrm{tr}\, \Sigma_{k-1} .

    This is approximate, since x_k depends on the batch of step k - 1. Gradient noise does
    not shrink with the step, so it dominates when steps are short.

    Float32 sums cause a relative error of about :math:`10^{-6} (|g_k|^2 + |g_{k-1}|^2) /
    |g_k - g_{k-1}|^2` in :math:`|g_k - g_{k-1}|^2`.

    References
    ----------
    .. [1] Y. Nesterov, "Introductory Lectures on Convex Optimization", 2004, section 1.2:
       functions with Lipschitz continuous gradients.

    Examples
    --------
    >>> import analyzers, trajstore
    >>> run = trajstore.open_run(example_run)
    >>> along = analyzers.smoothness(run).compute()
    >>> int(along.smoothness.isnull().sum())
    1
    """
    later = _steps(run) if measurement is None else _measured(run, measurement)
    if not layers:
        lr = later["lr"]
        later = later.drop_vars("lr").sum(LAYER, skipna=False).assign(lr=lr)
    change_sq = later["later_sq"] + later["earlier_sq"] - 2 * later["product"]
    epsilon = np.finfo(np.float64 if run.spec.float64 else np.float32).eps
    largest_sq = later["earlier_sq"].max(STEP)
    is_known = change_sq > CHANGE_RTOL * (later["later_sq"] + later["earlier_sq"])
    is_known &= change_sq > (LEAST_CHANGE * epsilon) ** 2 * largest_sq
    moved_sq = later["moved_sq"].where(later["moved_sq"] > 0)
    values = {"smoothness": (change_sq.where(is_known) / moved_sq) ** 0.5}
    # The update is -lr times the earlier gradient.
    along = -later["lr"] * (later["product"] - later["earlier_sq"]) / moved_sq
    values["curvature"] = along.where(is_known & is_plain_descent(run))
    gradients = "steps" if measurement is None else measurement
    attributes = {"run": run.location, "gradients": gradients}
    return describe(xr.Dataset(values, attrs=attributes), LONG_NAMES)


def _steps(run: Run) -> xr.Dataset:
    """Return squares and products of neighbouring steps, float64 (step, layer), and rates."""
    steps = _float64(run, "grad_sq", "grad_dot_previous", "update_sq")
    rates = _rates(run)
    # `shift` moves values under fixed labels; slices would be aligned back by label.
    return xr.Dataset(
        {
            "later_sq": steps["grad_sq"],
            "earlier_sq": steps["grad_sq"].shift({STEP: 1}),
            "product": steps["grad_dot_previous"].where(steps[STEP] > 0),
            "moved_sq": steps["update_sq"].shift({STEP: 1}),
            "lr": rates.shift({STEP: 1}),
        }
    )


def _measured(run: Run, name: str) -> xr.Dataset:
    """Return the terms of `_steps` for measured gradients and those of the steps before."""
    if name not in run.measurements:
        raise KeyError(
            f"No measurement {name!r} in {run.location}; it has "
            f"{list(run.measurements)}. Gradients of the same examples after a step are "
            "recorded with --same-batch-every of traj-train, or by recorder.measure."
        )
    rows = _float64(run.measured(name), "grad_sq", "grad_dot_previous")
    steps = _float64(run, "grad_sq", "update_sq").assign(lr=_rates(run))
    previous = rows[STEP].values - 1
    has_previous = xr.DataArray(previous >= 0, dims=STEP)
    # Labels are dropped: the result takes the labels of the measurement.
    before = steps.drop_vars(["epoch", "iteration", STEP]).isel(
        {STEP: np.maximum(previous, 0)}
    )
    before = before.where(has_previous)
    return xr.Dataset(
        {
            "later_sq": rows["grad_sq"],
            "earlier_sq": before["grad_sq"],
            "product": rows["grad_dot_previous"],
            "moved_sq": before["update_sq"],
            "lr": before["lr"],
        }
    )


def _float64(run: Run, *names: str) -> xr.Dataset:
    found: xr.Dataset = tables(run, *names).astype(np.float64)
    return found


def _rates(run: Run) -> Any:
    if "lr" in run.metrics:
        return tables(run, "lr")["lr"]
    return xr.full_like(tables(run, "grad_norm")["grad_norm"], np.nan)
