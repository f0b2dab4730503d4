"""Whether the loss is convex as far as the path shows: below no tangent, above no chord."""

from typing import Any, Final

import numpy as np
import xarray as xr

from analyzers._engine.tables import tables
from analyzers.curvature.update_products import update_products
from analyzers.geometry.path_geometry import path_geometry
from trajstore.reading.epochs import index_epochs
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike

SURE: Final = 2.0
"""Standard errors by which a slack has to be negative."""

ROUNDING: Final = 2.0**-21
"""Of a loss, relative: what float32 means of many examples are off by."""

FRACTION: Final = "fraction"
"""Dimension of points between two iterates."""

SOURCE: Final = (
    "First-order condition of convexity: S. Boyd, L. Vandenberghe, 'Convex Optimization', "
    "2004, section 3.1.3"
)


def convexity(
    run: Run, *, reference: TargetLike = "final", reference_loss: float | None = None
) -> xr.Dataset:
    r"""By how much the loss at x* lies above the tangents at the iterates.

    .. math:: s_k = f(x^*) - f(x_k) - \langle g_k, x^* - x_k \rangle

    A convex function has no negative slack.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`, with ``loss`` logged; or the rows of a
        measurement of all data, ``run.measured("full_batch")``.
    reference : str, int, Run or mapping, default: "final"
        The point x*, as `path_geometry` takes it.
    reference_loss : float, optional
        The whole loss at x*. Default: what the run has recorded there: the loss of a
        measurement ``"full_batch"`` after the last step or at the start of the epoch, or
        of a run with the full batch that of the step, or of ``"same_batch"`` after the
        last one.

    Returns
    -------
    xarray.Dataset
        Lazy. Dimension ``step`` with the coordinates ``epoch`` and ``iteration``; units of
        the loss. ``slack`` and ``slack_stderr``, the standard error of the inner product;
        and ``is_violated``: whether the slack is below 0 by more than two standard errors
        and the rounding of losses.

    Raises
    ------
    KeyError
        If no loss was logged; or as `path_geometry`.
    ValueError
        If the loss at x* was not recorded and is not given; or as `path_geometry`.

    Notes
    -----
    Exact but for the inner product where loss and gradient are those of all examples.
    With minibatches :math:`f(x_k)` and :math:`g_k` are those of one batch and
    :math:`f(x^*)` that of all: the slack of one step then says nothing, and the mean
    over an epoch is that of the whole loss, as far as x* is independent of the batches.

    No violation does not mean that the loss is convex, only that these tangents do not show
    the contrary. The condition towards x* is that of star-convexity [2]_.

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
    # <g, x - x*>: the distance, which is estimated, is no part of it.
    product, stderr = (geometry[name] * square for name in ("lolr", "lolr_stderr"))
    slack = reference_loss - loss + product
    rounding = ROUNDING * (abs(loss) + abs(reference_loss))
    attributes = {
        "run": run.location,
        "reference": geometry.attrs["reference"],
        "direction": geometry.attrs["direction"],
        "reference_loss": reference_loss,
        "source": SOURCE,
    }
    return _dataset({"slack": (slack, stderr)}, rounding, attributes)


def adjacent_convexity(run: Run) -> xr.Dataset:
    r"""By how much the losses of neighbouring iterates lie above each other's tangents.

    With :math:`u_k = x_{k+1} - x_k`,

    .. math:: s_k = f(x_{k+1}) - f(x_k) - \langle g_k, u_k \rangle, \quad
              s'_k = f(x_k) - f(x_{k+1}) + \langle g_{k+1}, u_k \rangle .

    A convex function has no negative slack. On a quadratic both are half of
    :math:`u_k^T H u_k`.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`, of a training with the full batch, with
        ``loss`` logged.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimension ``step``, of the earlier iterate, with the coordinates ``epoch``
        and ``iteration``; units of the loss. ``slack`` and ``slack_back``, with their
        standard errors in variables ending in ``_stderr``, 0 for plain descent and
        momentum; ``is_violated`` and ``is_violated_back``, see `convexity`. NaN for the
        last step, and where `update_products` knows of no rule.

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
    settings: Any = run.attrs.get("training", {})
    if not settings.get("full_batch", True):
        raise ValueError(
            f"Losses of neighbouring steps of {run.location} are those of different "
            "examples, and cannot be compared. Train with the full batch (--full-batch of "
            "traj-train)."
        )
    products = update_products(run)
    rise = loss.copy(data=np.append(np.diff(loss.values), np.nan))
    later = abs(loss) + abs(loss.copy(data=np.append(loss.values[1:], np.nan)))
    pairs = {
        "slack": (rise - products["before"], products["before_stderr"]),
        "slack_back": (products["after"] - rise, products["after_stderr"]),
    }
    attributes = {
        "run": run.location,
        "rule": products.attrs["rule"],
        "source": SOURCE,
    }
    return _dataset(pairs, ROUNDING * later, attributes)


def chord_convexity(losses: xr.DataArray) -> xr.Dataset:
    r"""By how much chords lie above the losses between two points.

    With the loss :math:`f_t` at :math:`(1 - t) x_a + t x_b`,

    .. math:: s_t = (1 - t) f_0 + t f_1 - f_t .

    Parameters
    ----------
    losses : xarray.DataArray
        With the dimension and coordinate ``fraction``, t, from 0 to 1, both included: what
        `train.protocols.chords.losses_between` returns, or of your own.

    Returns
    -------
    xarray.Dataset
        ``slack``, as `losses`, and ``is_violated``: whether it is below 0 by more than the
        rounding of losses.

    Raises
    ------
    ValueError
        If fractions do not reach from 0 to 1.
    """
    fraction = losses[FRACTION]
    ends = (float(fraction.min()), float(fraction.max()))
    if ends != (0.0, 1.0):
        raise ValueError(
            f"Fractions of a chord must reach from 0 to 1, got {ends[0]:g} to {ends[1]:g}."
        )
    first, last = (losses.sel({FRACTION: end}, drop=True) for end in (0.0, 1.0))
    slack = (1 - fraction) * first + fraction * last - losses
    rounding = ROUNDING * (abs(first) + abs(last) + abs(losses))
    return xr.Dataset({"slack": slack, "is_violated": slack < -rounding})


def _losses(run: Run) -> xr.DataArray:
    if "loss" not in run.metrics:
        raise KeyError(
            f"No losses in {run.location}; it has {run.metrics}. Log them by "
            "recorder.log(loss=loss), or recorder.measure(name, loss=loss)."
        )
    return tables(run, "loss")["loss"]


def _recorded_loss(run: Run, reference: TargetLike) -> float:
    """Find the whole loss at a point of the path."""
    whole = Run(run.stored.of_steps)
    is_full: bool = whole.attrs.get("training", {}).get("full_batch", False)
    step = _step_of(whole, reference)
    sources = [whole] if is_full else []
    names = ("full_batch", "same_batch") if is_full else ("full_batch",)
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
    """Return how many steps lead to a point; None if it is not on the path."""
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
    variables = {}
    for name, (slack, stderr) in pairs.items():
        suffix = name.removeprefix("slack")
        below = f"is_violated{suffix}"
        variables[name] = slack.assign_attrs(
            long_name="loss less the tangent", units="1"
        )
        variables[f"{name}_stderr"] = stderr.assign_attrs(
            long_name=f"standard error of {name}", units="1"
        )
        variables[below] = (slack < -(SURE * stderr + rounding)).assign_attrs(
            long_name="whether the loss lies below the tangent", units="1"
        )
    result = xr.Dataset(variables, attrs=attributes)
    return result if "epoch" in result.xindexes else index_epochs(result)
