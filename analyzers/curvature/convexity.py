"""Test of convexity along a path: whether the loss is above tangents and below chords."""

from typing import Any, Final

import numpy as np
import xarray as xr

from analyzers._engine.labels import describe
from analyzers._engine.tables import tables
from analyzers.curvature.update_products import update_products
from analyzers.geometry.path_geometry import path_geometry
from trajstore.format.attrs import (
    FULL_BATCH,
    SAME_BATCH,
    training_settings,
    uses_all_data,
)
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.epochs import index_epochs
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike

VIOLATION_STDERR: Final = 2.0
"""Number of standard errors below 0 beyond which a slack violates convexity."""

LOSS_RTOL: Final = 2.0**-21
"""Relative rounding error of a loss, a float32 mean over many examples."""

FRACTION: Final = "fraction"
"""Dimension of the points on a chord between two iterates."""

SOURCE: Final = (
    "First-order condition of convexity: S. Boyd, L. Vandenberghe, 'Convex Optimization', "
    "2004, section 3.1.3"
)

LONG_NAMES: Final = {
    "slack": "loss minus the tangent",
    "slack_back": "loss minus the tangent",
    "is_violated": "whether the loss lies below the tangent",
    "is_violated_back": "whether the loss lies below the tangent",
}


@accepts_path
def convexity(
    run: Run,
    *,
    reference: TargetLike = "final",
    reference_loss: float | None = None,
    full_batch: bool = False,
) -> xr.Dataset:
    r"""Slack of convexity: the loss at x* minus the tangents at the iterates.

    .. math:: s_k = f(x^*) - f(x_k) - \langle g_k, x^* - x_k \rangle

    If f is convex, its slack is never negative.

    Parameters
    ----------
    run : trajstore.Run
        Run with ``loss`` logged, or a measurement of all data with a loss,
        ``run.measured("full_batch")``.
    reference : str, int, Run or mapping, default: "final"
        The target x*, as `path_geometry` takes it.
    reference_loss : float, optional
        Loss over all data at x*. Default: the loss that the run recorded at x* in a
        measurement ``"full_batch"``: after the last step, or at the start of the epoch whose
        number is `reference`. If the run trained with the full batch, a loss logged at the
        first step of that epoch, or in a measurement ``"same_batch"`` at x*, also serves.
    full_batch : bool, default: False
        Say that every step of the run uses all data, if the recording does not say so.

    Returns
    -------
    xarray.Dataset
        Lazy. Dimension ``step`` with the coordinates ``epoch`` and ``iteration``. ``slack``
        is in units of the loss, and ``slack_stderr`` is its standard error, that of the
        inner product. ``is_violated`` says whether the slack is below 0 by more than two
        standard errors plus the rounding of the losses.

    Raises
    ------
    KeyError
        If no loss was logged, or where `path_geometry` raises it.
    ValueError
        If the loss at x* was neither recorded nor given, or where `path_geometry` raises it.

    Notes
    -----
    With losses and gradients of all examples, everything except the inner product is
    exact. With minibatches, :math:`f(x_k)` and :math:`g_k` belong to one batch, and
    :math:`f(x^*)` belongs to all data. In this case the slack of a single step is
    meaningless, but its mean over an epoch estimates the slack of the whole loss, to the
    extent that x* is independent of the batches.

    A loss without violations need not be convex: only the tangents at the iterates are
    tested [1]_. Convexity towards the single point x* is called star-convexity [2]_.

    References
    ----------
    .. [1] S. Boyd, L. Vandenberghe, "Convex Optimization", 2004, section 3.1.3.
    .. [2] Y. Zhou, J. Yang, H. Zhang, Y. Liang, V. Tarokh, "SGD Converges to Global Minimum
       in Deep Learning via Star-convex Path", ICLR 2019, arXiv 1901.00451.
    """
    loss = _losses(run)
    if reference_loss is None:
        reference_loss = _recorded_loss(run, reference, full_batch=full_batch)
    geometry = path_geometry(run, reference=reference)
    square = tables(run, "grad_norm")["grad_norm"].astype(np.float64) ** 2
    # lolr is <g, x - x*> / |g|^2, without the estimated distance to x*.
    product, stderr = (geometry[name] * square for name in ("lolr", "lolr_stderr"))
    slack = reference_loss - loss + product
    rounding = LOSS_RTOL * (abs(loss) + abs(reference_loss))
    attributes = {
        "run": run.location,
        "reference": geometry.attrs["reference"],
        "direction": geometry.attrs["direction"],
        "reference_loss": reference_loss,
        "source": SOURCE,
    }
    return _dataset({"slack": (slack, stderr)}, rounding, attributes)


@accepts_path
def adjacent_convexity(run: Run) -> xr.Dataset:
    r"""Slack of convexity between neighbouring iterates, from the tangents at both.

    With :math:`u_k = x_{k+1} - x_k`,

    .. math:: s_k = f(x_{k+1}) - f(x_k) - \langle g_k, u_k \rangle, \quad
              s'_k = f(x_k) - f(x_{k+1}) + \langle g_{k+1}, u_k \rangle .

    If f is convex [1]_, neither slack is ever negative. On a quadratic with the Hessian H,
    both are half of :math:`u_k^T H u_k`.

    Parameters
    ----------
    run : trajstore.Run
        Run that was trained with the full batch, with ``loss`` logged.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimension ``step``, the step between the two iterates, with the coordinates
        ``epoch`` and ``iteration``. ``slack`` and ``slack_back``, in units of the loss, are
        s and s'. The names of their standard errors end in ``_stderr``; these are 0 for
        plain descent and momentum. ``is_violated`` and ``is_violated_back`` are defined as
        in `convexity`. Slacks are NaN at the last step and where `update_products` returns
        NaN.

    Raises
    ------
    KeyError
        If no loss was logged.
    ValueError
        If the settings of the run say that it trained with minibatches.

    References
    ----------
    .. [1] S. Boyd, L. Vandenberghe, "Convex Optimization", 2004, section 3.1.3.
    """
    loss = _losses(run).compute()
    if not training_settings(run.attrs).get(FULL_BATCH, True):
        raise ValueError(
            f"Neighbouring steps of {run.location} have losses of different examples, "
            "which cannot be compared. Train with the full batch (--full-batch of "
            "traj-train)."
        )
    products = update_products(run)
    rise = loss.copy(data=np.append(np.diff(loss.values), np.nan))
    magnitude = abs(loss) + abs(loss.copy(data=np.append(loss.values[1:], np.nan)))
    pairs = {
        "slack": (rise - products["before"], products["before_stderr"]),
        "slack_back": (products["after"] - rise, products["after_stderr"]),
    }
    attributes = {
        "run": run.location,
        "rule": products.attrs["rule"],
        "source": SOURCE,
    }
    return _dataset(pairs, LOSS_RTOL * magnitude, attributes)


def chord_convexity(losses: xr.DataArray) -> xr.Dataset:
    r"""Slack of convexity on chords: the height of the chord minus the loss.

    With the loss :math:`f_t` at :math:`(1 - t) x_a + t x_b`,

    .. math:: s_t = (1 - t) f_0 + t f_1 - f_t .

    Parameters
    ----------
    losses : xarray.DataArray
        Losses with the dimension and coordinate ``fraction``, t, from 0 to 1 inclusive, as
        computed by `trajstore.evaluation.losses_between` or by your own code.

    Returns
    -------
    xarray.Dataset
        ``slack`` and ``is_violated``, with the dimensions of `losses`. ``is_violated`` says
        whether the slack is below 0 by more than the rounding of the losses.

    Raises
    ------
    ValueError
        If the fractions do not span 0 to 1.
    """
    fraction = losses[FRACTION]
    ends = (float(fraction.min()), float(fraction.max()))
    if ends != (0.0, 1.0):
        raise ValueError(
            f"Fractions of a chord must reach from 0 to 1, got {ends[0]:g} to {ends[1]:g}."
        )
    first, last = (losses.sel({FRACTION: end}, drop=True) for end in (0.0, 1.0))
    slack = (1 - fraction) * first + fraction * last - losses
    rounding = LOSS_RTOL * (abs(first) + abs(last) + abs(losses))
    return xr.Dataset({"slack": slack, "is_violated": slack < -rounding})


def _losses(run: Run) -> xr.DataArray:
    if "loss" not in run.metrics:
        raise KeyError(
            f"No losses in {run.location}; its scalars are {run.metrics}. Log them with "
            "recorder.log(loss=loss), or recorder.measure(name, loss=loss)."
        )
    return tables(run, "loss")["loss"]


def _recorded_loss(run: Run, reference: TargetLike, *, full_batch: bool) -> float:
    """Return the loss over all data that was recorded at the target."""
    step_run = Run(run.stored.step_rows)
    is_full = full_batch or uses_all_data(step_run.attrs)
    step = _step_of(step_run, reference)
    sources = [step_run] if is_full else []
    names = (FULL_BATCH, SAME_BATCH) if is_full else (FULL_BATCH,)
    sources += [
        step_run.measured(name) for name in names if name in step_run.measurements
    ]
    for source in sources:
        rows = np.flatnonzero(source.stored.step_numbers == step)
        if len(rows) and "loss" in source.metrics:
            return float(source.steps["loss"].values[rows[0]])
    raise ValueError(
        f"The loss over all data at {reference!r} was not recorded in {run.location}; pass "
        "`reference_loss`, or record it there with recorder.measure('full_batch', loss=...)."
    )


def _step_of(run: Run, reference: TargetLike) -> int | None:
    """Return the number of steps before the last iterate or an epoch, otherwise None."""
    if isinstance(reference, str) and reference == "final":
        return run.n_steps
    if isinstance(reference, int):
        steps = np.flatnonzero(
            (run.stored.epochs == reference) & (run.stored.iterations == 0)
        )
        return int(steps[0]) if len(steps) else None
    return None


def _dataset(
    pairs: dict[str, tuple[xr.DataArray, xr.DataArray]],
    rounding: xr.DataArray,
    attributes: dict[str, Any],
) -> xr.Dataset:
    """Return a dataset of slacks, their standard errors, and their violations."""
    variables = {}
    for name, (slack, stderr) in pairs.items():
        variables[name], variables[f"{name}_stderr"] = slack, stderr
        is_violated = slack < -(VIOLATION_STDERR * stderr + rounding)
        variables[f"is_violated{name.removeprefix('slack')}"] = is_violated
    result = describe(xr.Dataset(variables, attrs=attributes), LONG_NAMES)
    return result if "epoch" in result.xindexes else index_epochs(result)
