"""How fast gradients change along the path."""

from typing import Any, Final

import numpy as np
import xarray as xr

from analyzers._engine.tables import tables
from analyzers.curvature.update_products import is_plain_descent
from trajstore.format.arrays import LAYER, STEP
from trajstore.reading.run import Run

LOST: Final = 2.0**-19
"""Share of |g_(k-1)|^2 + |g_k|^2 below which |g_k - g_(k-1)|^2 is rounding."""

DESCRIPTIONS: Final = {
    "smoothness": (
        "change of the gradient over that of the parameters",
        "|g_k - g_(k-1)| / |u_(k-1)|",
    ),
    "curvature": (
        "change of the gradient along the step",
        "<g_k - g_(k-1), u_(k-1)> / |u_(k-1)|^2",
    ),
}
"""Long names and definitions."""


def smoothness(
    run: Run, *, measurement: str | None = None, layers: bool = False
) -> xr.Dataset:
    r"""Change of the gradient over the change of the parameters, from step to step.

    With :math:`u_k = x_{k+1} - x_k`,

    .. math:: \frac{|g_k - g_{k-1}|}{|x_k - x_{k-1}|}
              = \frac{\sqrt{|g_k|^2 + |g_{k-1}|^2 - 2 \langle g_k, g_{k-1} \rangle}}
                     {|u_{k-1}|}

    from the recorded products, without an estimate. With `measurement` :math:`g_k` is the
    gradient of the examples of step k - 1, once more, where that step led.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    measurement : str, optional
        Name of the measurement of the same examples after a step: ``"same_batch"``, if
        ``traj-train run NAME --same-batch-every 10`` or the like has made it; in a loop of
        your own ``recorder.measure("same_batch")`` between two steps, after a backward
        pass over the examples of the last one. Default: the gradients of the steps.
    layers : bool, default: False
        Tell the parameter tensors apart: numerator and denominator are those of the
        tensor, while all tensors have moved.

    Returns
    -------
    xarray.Dataset
        Lazy. Dimension ``step``, that of the later of both gradients, with the coordinates
        ``epoch`` and ``iteration``, and ``layer`` if asked for. Float64, units of loss and
        parameters taken as 1. ``smoothness``; and ``curvature``, the same along the step,
        :math:`\langle g_k - g_{k-1}, u_{k-1} \rangle / |u_{k-1}|^2`, a mean of the second
        derivative of the loss over the step, NaN unless steps are -lr times the gradient.
        NaN for the first step, where a step is 0, and where the change of the gradient is
        below its rounding: one thousandth of the gradient.

    Raises
    ------
    KeyError
        If there is no such measurement.

    Notes
    -----
    *Of the same examples* (`measurement`), it bounds from below the Lipschitz constant of
    the gradient of *their* loss on the segment between the iterates. It bounds nothing of
    the whole loss, whose Lipschitz constant may be smaller or larger, and it sees
    the curvature in the direction of steps only: near the largest eigenvalue, if
    steps are along its vector.

    *Of different examples* (the default) it bounds nothing, from above or below, unless the
    run is one with the full batch. With :math:`f` the whole loss, independent batches and
    :math:`\Sigma_k` the covariance of the gradient,

    .. math:: E |g_k - g_{k-1}|^2 \approx |\nabla f(x_k) - \nabla f(x_{k-1})|^2
              + \mathrm{tr}\, \Sigma_k + \mathrm{tr}\, \Sigma_{k-1}

    (an approximation: x_k depends on the batch of step k - 1). Noise of the gradient, which
    does not become smaller with the step, thus dominates where steps are short.

    Float32 sums leave a relative error of about :math:`10^{-6} (|g_k|^2 + |g_{k-1}|^2) /
    |g_k - g_{k-1}|^2`.

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
    later = _of_steps(run) if measurement is None else _measured(run, measurement)
    if not layers:
        lr = later["lr"]
        later = later.drop_vars("lr").sum(LAYER, skipna=False).assign(lr=lr)
    change_sq = later["later_sq"] + later["earlier_sq"] - 2 * later["product"]
    is_known = change_sq > LOST * (later["later_sq"] + later["earlier_sq"])
    moved_sq = later["moved_sq"].where(later["moved_sq"] > 0)
    values = {"smoothness": (change_sq.where(is_known) / moved_sq) ** 0.5}
    # u = -lr g of the earlier gradient.
    along = -later["lr"] * (later["product"] - later["earlier_sq"]) / moved_sq
    values["curvature"] = along.where(is_known & is_plain_descent(run))
    result = xr.Dataset(values)
    for name, (long_name, definition) in DESCRIPTIONS.items():
        result[name].attrs = {
            "long_name": long_name,
            "definition": definition,
            "units": "1",
        }
    of = "steps" if measurement is None else measurement
    return result.assign_attrs({"run": run.location, "gradients": of})


def _of_steps(run: Run) -> xr.Dataset:
    """Return what is known of the gradients of neighbouring steps, by layer."""
    steps = _float64(run, "grad_sq", "grad_dot_previous", "update_sq")
    rates = _rates(run)
    # Aligned by label the shifted values would come back to their places.
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
    """Return the same of measured gradients and those of the last steps before them."""
    if name not in run.measurements:
        raise KeyError(
            f"No measurement {name!r} in {run.location}; it has "
            f"{list(run.measurements)}. Gradients of the same examples after a step are "
            "recorded with --same-batch-every of traj-train, or by recorder.measure."
        )
    rows = _float64(run.measured(name), "grad_sq", "grad_dot_previous")
    steps = _float64(run, "grad_sq", "update_sq").assign(lr=_rates(run))
    previous = rows[STEP].values - 1
    is_there = xr.DataArray(previous >= 0, dims=STEP)
    # Without labels: they are those of the rows.
    before = steps.drop_vars(["epoch", "iteration", STEP]).isel(
        {STEP: np.maximum(previous, 0)}
    )
    before = before.where(is_there)
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
