"""Convexity of the loss as far as a path shows it: slack above tangents, below chords."""

from typing import Any, Final

import numpy as np
import xarray as xr

from analyzers._engine.labels import describe
from analyzers._engine.tables import tables
from analyzers.curvature.update_products import update_products
from analyzers.geometry.path_geometry import path_geometry
from trajstore.format.attrs import FULL_BATCH, SAME_BATCH, training_settings
from trajstore.reading.epochs import index_epochs
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike

VIOLATION_STDERR: Final = 2.0
"""Standard errors by which a slack must be below 0 to count as a violation."""

LOSS_RTOL: Final = 2.0**-21
"""Relative rounding error of a loss, a float32 mean over many examples."""

FRACTION: Final = "fraction"
"""Dimension of the points on a chord between two iterates."""

SOURCE: Final = (
    "First-order condition of convexity: S. Boyd, L. Vandenberghe, 'Convex Optimization', "
    "2004, section 3.1.3"
)

LONG_NAMES: Final = {
    "slack": "loss less the tangent",
    "slack_back": "loss less the tangent",
    "is_violated": "whether the loss lies below the tangent",
    "is_violated_back": "whether the loss lies below the tangent",
}


def convexity(
    run: Run, *, reference: TargetLike = "final", reference_loss: float | None = None
) -> xr.Dataset:
    r"""Slack of convexity: the loss at x* less the tangents at the iterates.

    .. math:: s_k = f(x^*) - f(x_k) - \langle g_k, x^* - x_k \rangle

    The slack of a convex function is never negative.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`, with ``loss`` logged; or a measurement of all
        data, ``run.measured("full_batch")``.
    reference : str, int, Run or mapping, default: "final"
        The target x*, as `path_geometry` takes it.
    reference_loss : float, optional
        The loss of all data at x*. Default: the loss that the run recorded there, by a
        measurement ``"full_batch"`` after the last step or at the start of the epoch. A
        run with the full batch may instead have logged it at that step, or measured it as
        ``"same_batch"`` after the last step.

    Returns
    -------
    xarray.Dataset
        Lazy. Dimension ``step`` with the coordinates ``epoch`` and ``iteration``; units of
        the loss. ``slack`` and ``slack_stderr``, the standard error of the inner product;
        and ``is_violated``: whether the slack is below 0 by more than two standard errors
        plus the rounding of the losses.

    Raises
    ------
    KeyError
        If no loss was logged; or as for `path_geometry`.
    ValueError
        If the loss at x* was not recorded and is not given; or as for `path_geometry`.

    Notes
    -----
    With losses and gradients of all examples, only the inner product is estimated and all
    else is exact. With minibatches, :math:`f(x_k)` and :math:`g_k` belong to one batch and
    :math:`f(x^*)` to all data. The slack of a single step then means nothing; its mean over
    an epoch estimates the slack of the whole loss, as far as x* is independent of the
    batches.

    Without a violation the loss may still not be convex; these tangents just do not show
    it. The condition towards x* is star-convexity [2]_.

    References
    ----------
    .. [1] S. Boyd, L. Vandenberghe, "Convex Optimization", 2004, section 3.1.3.
    .. [2] Y. Zhou, J. Yang, H. Zhang, Y. Liang, V. Tarokh, "SGD Converges to Global Minimum
       in Deep Learning via Star-convex Path", ICLR 2019, arXiv 1901.00451.
    """
    loss = _losses(run)
    if reference_loss is None:
        reference_loss = _recorded_loss(run, reference)
    geometry = path_geometry(run, reference=reference)
    square = tables(run, "grad_norm")["grad_norm"].astype(np.float64) ** 2
    # <g, x - x*> does not involve the distance, which is estimated.
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


def adjacent_convexity(run: Run) -> xr.Dataset:
    r"""Slack of convexity between neighbouring iterates, from the tangents at both.

    With :math:`u_k = x_{k+1} - x_k`,

    .. math:: s_k = f(x_{k+1}) - f(x_k) - \langle g_k, u_k \rangle, \quad
              s'_k = f(x_k) - f(x_{k+1}) + \langle g_{k+1}, u_k \rangle .

    The slack of a convex function is never negative. On a quadratic both are half of
    :math:`u_k^T H u_k`.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`, trained with the full batch and with ``loss``
        logged.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimension ``step``, of the earlier iterate, with the coordinates ``epoch``
        and ``iteration``; units of the loss. ``slack`` and ``slack_back``, with their
        standard errors in variables ending in ``_stderr``, 0 for plain descent and
        momentum; ``is_violated`` and ``is_violated_back``, see `convexity`. NaN for the
        last step, and where `update_products` returns NaN.

    Raises
    ------
    KeyError
        If no loss was logged.
    ValueError
        If the run says that its steps were taken with minibatches.

    References
    ----------
    .. [1] S. Boyd, L. Vandenberghe, "Convex Optimization", 2004, section 3.1.3.
    """
    loss = _losses(run).compute()
    if not training_settings(run.attrs).get(FULL_BATCH, True):
        raise ValueError(
            f"Losses of neighbouring steps of {run.location} are losses of different "
            "examples, and cannot be compared. Train with the full batch (--full-batch of "
            "traj-train)."
        )
    products = update_products(run)
    rise = loss.copy(data=np.append(np.diff(loss.values), np.nan))
    both = abs(loss) + abs(loss.copy(data=np.append(loss.values[1:], np.nan)))
    pairs = {
        "slack": (rise - products["before"], products["before_stderr"]),
        "slack_back": (products["after"] - rise, products["after_stderr"]),
    }
    attributes = {
        "run": run.location,
        "rule": products.attrs["rule"],
        "source": SOURCE,
    }
    return _dataset(pairs, LOSS_RTOL * both, attributes)


def chord_convexity(losses: xr.DataArray) -> xr.Dataset:
    r"""Slack of convexity on a chord: the chord less the losses between its ends.

    With the loss :math:`f_t` at :math:`(1 - t) x_a + t x_b`,

    .. math:: s_t = (1 - t) f_0 + t f_1 - f_t .

    Parameters
    ----------
    losses : xarray.DataArray
        With the dimension and coordinate ``fraction``, t, from 0 to 1, both included:
        computed by `train.protocols.chords.losses_between`, or by your own code.

    Returns
    -------
    xarray.Dataset
        ``slack``, with the dimensions of `losses`, and ``is_violated``: whether the slack
        is below 0 by more than the rounding of the losses.

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
            f"No losses in {run.location}; it has {run.metrics}. Log them by "
            "recorder.log(loss=loss), or recorder.measure(name, loss=loss)."
        )
    return tables(run, "loss")["loss"]


def _recorded_loss(run: Run, reference: TargetLike) -> float:
    """Return the recorded loss of all data at a point of the path."""
    whole = Run(run.stored.of_steps)
    is_full: bool = training_settings(whole.attrs).get(FULL_BATCH, False)
    step = _step_of(whole, reference)
    sources = [whole] if is_full else []
    names = (FULL_BATCH, SAME_BATCH) if is_full else (FULL_BATCH,)
    sources += [whole.measured(name) for name in names if name in whole.measurements]
    for source in sources:
        rows = np.flatnonzero(source.stored.step_numbers == step)
        if len(rows) and "loss" in source.metrics:
            return float(source.steps["loss"].values[rows[0]])
    raise ValueError(
        f"The loss of all data at {reference!r} was not recorded in {whole.location}; give "
        "`reference_loss`, or record it there by recorder.measure('full_batch', loss=...)."
    )


def _step_of(run: Run, reference: TargetLike) -> int | None:
    """Return the number of steps before a point, None if it is not on the path."""
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
    """Return slacks, their standard errors, and whether they violate convexity."""
    variables = {}
    for name, (slack, stderr) in pairs.items():
        variables[name], variables[f"{name}_stderr"] = slack, stderr
        is_violated = slack < -(VIOLATION_STDERR * stderr + rounding)
        variables[f"is_violated{name.removeprefix('slack')}"] = is_violated
    result = describe(xr.Dataset(variables, attrs=attributes), LONG_NAMES)
    return result if "epoch" in result.xindexes else index_epochs(result)
