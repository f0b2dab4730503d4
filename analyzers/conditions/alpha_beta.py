"""Alpha-beta condition along a path, and the pairs of constants for which it holds.

R. Islamov, N. Ajroldi, A. Orvieto, A. Lucchi, "Loss Landscape Characterization of Neural
Networks without Over-Parametrization", NeurIPS 2024, definition 1.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers._engine.labels import describe
from analyzers.conditions.arrays import (
    NO_STEP,
    Steps,
    feasible,
    largest_at_zero,
    smallest_margin,
)
from analyzers.conditions.defaults import MIN_GAP
from analyzers.conditions.rounding import is_rounding, loss_epsilon, loss_error, rule
from analyzers.geometry.losses import by_step, products, recorded_losses, replayed
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike

Datasets = xr.Dataset | Iterable[xr.Dataset]
FloatArray = npt.NDArray[np.floating[Any]]

SOURCE: Final = (
    "R. Islamov, N. Ajroldi, A. Orvieto, A. Lucchi, 'Loss Landscape Characterization of "
    "Neural Networks without Over-Parametrization', NeurIPS 2024"
)
"""Citation of the condition, stored in the attributes of results."""

LONG_NAMES: Final = {
    "loss": "loss of the batch",
    "reference_loss": "loss of the batch at x*",
    "loss_rounding": "error of the two losses from rounding",
}


def _because_of_gap(terms: Steps, min_gap: float) -> str:
    """Say whether only `min_gap` rules out all pairs, for the end of a message."""
    # Where the loss at x* is f*, alpha and beta matter by their difference only.
    is_tied = (terms.gap > 0) & (terms.gap <= terms.excess)
    largest = (terms.product[is_tied] / terms.gap[is_tied]).min(initial=np.inf)
    if not 0 <= largest < min_gap:
        return ""
    return (
        f": the steps allow alpha - beta of at most {largest:.3g}, and min_gap asks for "
        f"{min_gap:g}. With min_gap=0 (--min-gap 0) look at the largest alpha at beta = 0"
    )


@accepts_path
def alpha_beta(
    run: Run,
    *,
    reference: TargetLike = "final",
    reference_losses: npt.ArrayLike | xr.DataArray | None = None,
    optimal_loss: float = 0.0,
) -> xr.Dataset:
    r"""Terms of the alpha-beta condition at every step.

    Let :math:`f_{i_k}` be the loss of the batch of step k, and :math:`g_k` its gradient at
    :math:`x_k`. With :math:`a_k = \langle g_k, x_k - x^* \rangle`,
    :math:`l_k = f_{i_k}(x_k)` and :math:`r_k = f_{i_k}(x^*)`, definition 1 of [1]_ states
    the condition for constants :math:`\alpha > \beta > 0` as

    .. math:: T_k(\alpha, \beta) = a_k - \alpha (l_k - r_k) + \beta (l_k - f^*) \ge 0 .

    The figure captions of [1]_ give the last term a minus sign, which must be a misprint:
    the definition reads
    :math:`a_k \ge \alpha (l_k - r_k) - \beta (l_k - f^*)`, where a larger :math:`\beta`
    weakens the condition, and a minus sign does not reproduce the magnitudes in [1]_.

    Parameters
    ----------
    run : trajstore.Run
        A run with the loss of every step: ``recorder.log(loss=loss)``.
    reference : str, int, Run or mapping, default: "final"
        The target x*, as `path_geometry` takes it. In [1]_ the last iterate serves as the
        projection onto the set of minimisers.
    reference_losses : array_like of float, optional
        Losses r_k of the batches of all steps at x*, shape ``(step,)``; NaN where a loss
        is unknown. Default: the losses that ``traj-train replay`` stored next to the run
        for this x*.
    optimal_loss : float, default: 0.0
        f*, a lower bound of the losses of all batches; [1]_ uses 0.

    Returns
    -------
    xarray.Dataset
        Dimension ``step`` with the coordinates ``epoch`` and ``iteration``; float64, in
        units of the loss. ``product`` is a_k and ``product_stderr`` its standard error;
        both are lazy. ``loss`` is l_k and ``reference_loss`` is r_k, both as recorded or given.
        ``loss_rounding`` is the error that rounding may leave in them: 10 machine epsilons of the
        larger one. Unknown values are NaN.

    Raises
    ------
    ValueError
        If losses are not recorded, if the r_k are missing or do not match the steps, or if
        a loss is below `optimal_loss` by more than its rounding.
    KeyError, TypeError
        Where `path_geometry` raises them.

    Notes
    -----
    a_k is unbiased. Its error comes from the sketch alone, is independent from step to step,
    and does not depend on the estimated distance. If the run was recorded with
    ``exact=True``, a_k is exact.

    Losses are rounded, in float64 if the parameters are float64 and not all losses are numbers of
    float32, else in float32. `feasible_set` and `margin` leave out the steps in which both a_k and
    l_k - r_k are below 1000 machine epsilons of the losses.

    References
    ----------
    .. [1] R. Islamov, N. Ajroldi, A. Orvieto, A. Lucchi, "Loss Landscape Characterization
       of Neural Networks without Over-Parametrization", NeurIPS 2024.

    Examples
    --------
    >>> import analyzers, trajstore
    >>> run = trajstore.open_run(example_run)
    >>> compared = analyzers.alpha_beta(run, reference_losses=0.9 * run.steps.loss)
    >>> pairs = analyzers.feasible_set(compared)
    >>> bool(pairs.best_alpha >= pairs.best_beta + 0.1)
    True
    """
    loss = recorded_losses(run)
    method = "given by the caller"
    if reference_losses is None:
        found = replayed(run, reference)
        reference_losses, method = found["reference_loss"], found.attrs["method"]
    at_target = by_step(reference_losses, run, "reference_losses")
    epsilon = loss_epsilon(run, loss.values)
    error = loss_error(epsilon, loss.values, at_target.values)
    _check_bound(loss.values, optimal_loss, error, "")
    _check_bound(at_target.values, optimal_loss, error, " at x*")
    product, geometry = products(run, reference)
    result = product.assign(
        loss=loss, reference_loss=at_target, loss_rounding=loss.copy(data=error)
    )
    attributes = {
        name: geometry.attrs[name] for name in ("run", "reference", "reference_note")
    }
    return describe(result, LONG_NAMES).assign_attrs(
        {
            **attributes,
            "reference_losses": method,
            "optimal_loss": optimal_loss,
            "rounding": rule(epsilon),
            "source": SOURCE,
        }
    )


def _check_bound(
    losses: FloatArray, optimal_loss: float, error: FloatArray, location: str
) -> None:
    """Raise a ValueError if a loss is below `optimal_loss` by more than its rounding."""
    if (losses < optimal_loss - error).any():
        step = int(np.nanargmin(losses))
        raise ValueError(
            f"The loss of step {step}{location} is {losses[step]:.6g}, below optimal_loss = "
            f"{optimal_loss:g}, which must be a lower bound of all losses; give a smaller "
            "bound."
        )


def margin(datasets: Datasets, alpha: npt.ArrayLike, beta: npt.ArrayLike) -> xr.Dataset:
    r"""Smallest T over all steps and runs, on a grid of pairs (alpha, beta).

    Parameters
    ----------
    datasets : xarray.Dataset or iterable of xarray.Dataset
        Results of `alpha_beta` for one run or several.
    alpha, beta : array_like of float
        Axes of the grid, one-dimensional. Pairs with alpha below beta are included.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimensions ``alpha`` and ``beta``. ``margin``, float64, in units of the
        loss, is :math:`\min_k T_k`; the condition holds along all paths for pairs whose
        margin is not negative. ``step`` and ``run``, int64, are the step with the smallest
        T and the index of its run in `datasets` and ``attrs["runs"]``. ``n_steps`` is the
        number of steps compared, ``n_missing`` the number of steps left out because a
        value is NaN, and ``n_rounded`` that of steps left out because a_k and l_k - r_k are not
        above rounding; ``attrs["rounding"]`` gives the rule.

    Raises
    ------
    ValueError
        If every step lacks a value, or `alpha` or `beta` is not one-dimensional.

    Notes
    -----
    The margin of a sketched run is biased downwards: the smallest of many estimates tends to
    be below the smallest of the true values.
    """
    known = _complete_steps(datasets, 0.0)
    grid = [np.atleast_1d(np.asarray(axis, np.float64)) for axis in (alpha, beta)]
    if any(axis.ndim != 1 for axis in grid):
        raise ValueError(
            "`alpha` and `beta` must be one-dimensional, got the shapes "
            f"{[axis.shape for axis in grid]}."
        )
    values, index = smallest_margin(known.terms, *grid)
    dims = ("alpha", "beta")
    long_name = "smallest T over all steps"
    return xr.Dataset(
        {
            "margin": (dims, values, {"long_name": long_name, "units": "1"}),
            "step": (dims, known.step[index]),
            "run": (dims, known.run[index]),
            "n_steps": len(known.step),
            "n_missing": known.n_missing,
            "n_rounded": known.n_rounded,
        },
        {"alpha": grid[0], "beta": grid[1]},
        known.attrs,
    )


def feasible_set(
    datasets: Datasets, *, min_gap: float = MIN_GAP, n_stderr: float = 0.0
) -> xr.Dataset:
    r"""Pairs for which the alpha-beta condition holds at every step of one or more runs.

    :math:`T_k` is linear in :math:`(\alpha, \beta)`, so the feasible pairs form an
    intersection of half-planes: for every :math:`\alpha` from the first corner upwards,
    :math:`\beta_{\min}(\alpha) \le \beta \le \alpha -` `min_gap`. The boundary
    :math:`\beta_{\min}` is convex and piecewise linear. It is computed exactly, without a
    grid.

    Parameters
    ----------
    datasets : xarray.Dataset or iterable of xarray.Dataset
        Results of `alpha_beta` for one run or several.
    min_gap : float, default: 0.1
        Smallest allowed alpha - beta.
    n_stderr : float, default: 0
        Number of standard errors to add to every a_k, and of errors from rounding to subtract from
        every l_k. The values -1 and 1 move the boundary as far as if all products and losses were
        off by one error.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimension ``vertex``, the corners of :math:`\beta_{\min}`. By corner:
        ``alpha``, ascending, and ``beta``; ``slope``, the slope of the boundary to the right
        of the corner; ``step`` and ``run``, the step whose half-plane bounds beta to the
        right of the corner, both -1 if beta >= 0 is the bound; and ``is_smallest``, true
        for the corners of the Pareto front, along which neither alpha nor beta can decrease
        unless the other increases. Without a dimension: ``best_alpha`` and
        ``best_beta``, the pair with the smallest sum, NaN if no pair is feasible;
        ``limit_step`` and ``limit_run``, the step whose half-plane bounds alpha from below,
        both -1 if no step does so, only alpha >= beta + `min_gap` and beta >= 0; ``n_steps``,
        ``n_missing`` and ``n_rounded`` as in `margin`. If no pair is feasible, there are no corners, and
        ``attrs["note"]`` names a step that rules out all pairs.

    Raises
    ------
    ValueError
        If every step lacks a value, or `min_gap` is negative.

    Notes
    -----
    If a pair is feasible, it remains feasible when both numbers grow by the same amount.

    For a sketched run, the set tends to be too small rather than too large: the condition
    must hold at every step, and among many steps a few have large errors. The sets for -1
    and 1 standard errors show how large the effect can be.
    """
    if not min_gap >= 0:
        raise ValueError(f"`min_gap` must be at least 0, got {min_gap}.")
    known = _complete_steps(datasets, n_stderr)
    found = feasible(known.terms, min_gap)
    limit_step, limit_run = known.locate(found.limit)
    attributes = known.attrs | {"min_gap": min_gap, "n_stderr": n_stderr}
    if len(found.alpha):
        # The boundary is convex: alpha + beta is smallest where the slope first reaches
        # -1, and beta is smallest where the slope first reaches 0.
        best = np.flatnonzero(found.slope >= -1)[0]
        pair = found.alpha[best], found.beta[best]
        n_smallest = np.flatnonzero(found.slope >= 0)[0] + 1
        attributes["note"] = "the feasible pairs are unbounded above"
    else:
        pair, n_smallest = (np.nan, np.nan), 0
        attributes["note"] = (
            f"no pair is feasible: step {limit_step} of {known.attrs['runs'][limit_run]} "
            "has the lowest possible loss at x*, and its gradient does not point far "
            f"enough away from x*{_because_of_gap(known.terms, min_gap)}"
        )
    located = [known.locate(plane) for plane in found.plane.tolist()]
    steps, runs = np.array(located, np.int64).reshape(-1, 2).T
    return xr.Dataset(
        {
            "alpha": ("vertex", found.alpha),
            "beta": ("vertex", found.beta),
            "slope": ("vertex", found.slope),
            "step": ("vertex", steps),
            "run": ("vertex", runs),
            "is_smallest": ("vertex", np.arange(len(found.alpha)) < n_smallest),
            "best_alpha": pair[0],
            "best_beta": pair[1],
            "limit_step": limit_step,
            "limit_run": limit_run,
            "n_steps": len(known.step),
            "n_missing": known.n_missing,
            "n_rounded": known.n_rounded,
        },
        attrs=attributes,
    )


def largest_alpha(pairs: xr.Dataset) -> float:
    """Largest alpha at which beta = 0 is feasible.

    Where beta = 0 is feasible, the smallest pair may be (`min_gap`, 0), which says nothing of the
    run; this alpha, the smallest :math:`a_k / (l_k - r_k)`, does.

    Parameters
    ----------
    pairs : xarray.Dataset
        As returned by `feasible_set`.

    Returns
    -------
    float
        NaN if beta = 0 is feasible at no alpha, infinite if alpha has no bound there.
    """
    return largest_at_zero(pairs["alpha"].values, pairs["step"].values)


def smallest_beta(pairs: xr.Dataset, alpha: npt.ArrayLike) -> xr.DataArray:
    """Smallest feasible beta for each alpha.

    Parameters
    ----------
    pairs : xarray.Dataset
        As returned by `feasible_set`.
    alpha : array_like of float
        Values of alpha, one-dimensional.

    Returns
    -------
    xarray.DataArray
        float64 along ``alpha``; NaN where no beta is feasible.
    """
    at = np.atleast_1d(np.asarray(alpha, np.float64))
    corners = pairs["alpha"].values
    corner = np.searchsorted(corners, at, side="right") - 1
    beta = np.full(len(at), np.nan)
    is_feasible, i = corner >= 0, corner[corner >= 0]
    slope = pairs["slope"].values[i]
    beta[is_feasible] = pairs["beta"].values[i] + slope * (at[is_feasible] - corners[i])
    attributes = {"long_name": "smallest feasible beta", "units": "1"}
    return xr.DataArray(beta, {"alpha": at}, "alpha", attrs=attributes)


class CompleteSteps(NamedTuple):
    """Concatenated steps of several runs, without steps that lack a value or are rounding."""

    terms: Steps
    step: npt.NDArray[np.int64]  # number of the step within its run (step,)
    run: npt.NDArray[np.int64]  # index of the run of the step (step,)
    n_missing: int
    n_rounded: int
    attrs: dict[str, Any]

    def locate(self, index: int) -> tuple[int, int]:
        """Return the step and run of a half-plane, (-1, -1) for beta >= 0."""
        if index == NO_STEP:
            return -1, -1
        return int(self.step[index]), int(self.run[index])


def _complete_steps(datasets: Datasets, n_stderr: float) -> CompleteSteps:
    """Return the complete steps, with `n_stderr` standard errors added to their products."""
    given = [datasets] if isinstance(datasets, xr.Dataset) else list(datasets)
    if not given:
        raise ValueError(
            "Expected at least one dataset of analyzers.alpha_beta, got none."
        )
    loaded = [dataset.compute() for dataset in given]
    terms = np.hstack([_terms(dataset, n_stderr) for dataset in loaded])
    rounded = np.concatenate([_are_rounding(dataset) for dataset in loaded])
    is_missing = ~np.isfinite(terms).all(0)
    n_missing, n_rounded = int(is_missing.sum()), int((rounded & ~is_missing).sum())
    is_known = ~is_missing & ~rounded
    if is_missing.all():
        raise ValueError(
            f"None of the {n_missing} steps has a product, a loss and a loss at x*; there "
            "is nothing to compare."
        )
    if not is_known.any():
        raise ValueError(
            f"In all {n_rounded} steps with known losses, the product of gradient and x - x* and the "
            "difference of the losses are rounding; there is nothing to compare. Compare steps "
            "further away from x*."
        )
    step = np.concatenate([dataset["step"].values for dataset in loaded])
    run = np.repeat(np.arange(len(loaded)), [data.sizes["step"] for data in loaded])
    attributes = {
        "runs": [dataset.attrs["run"] for dataset in loaded],
        "reference": [dataset.attrs["reference"] for dataset in loaded],
        "rounding": loaded[0].attrs.get("rounding", "not known"),
        "source": SOURCE,
    }
    known = (step[is_known], run[is_known])
    counts = n_missing, n_rounded
    return CompleteSteps(Steps(*terms[:, is_known]), *known, *counts, attributes)


def _are_rounding(dataset: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Return in which steps only beta (l_k - f*) is left of T_k but rounding, (step,)."""
    excess = dataset["loss"].values - dataset["reference_loss"].values
    found: npt.NDArray[np.bool_] = is_rounding(
        _rounding(dataset), dataset["product"].values, excess
    )
    return found


def _rounding(dataset: xr.Dataset) -> FloatArray:
    """Return the errors of the losses from rounding; results of earlier versions lack them."""
    if "loss_rounding" in dataset:
        return dataset["loss_rounding"].values
    return np.zeros(dataset.sizes["step"])


def _terms(dataset: xr.Dataset, n_stderr: float) -> npt.NDArray[np.float64]:
    """Return the terms a_k, l_k - r_k and l_k - f* as rows, float64 (3, step)."""
    product, loss = dataset["product"].values, dataset["loss"].values
    if n_stderr:
        product = product + n_stderr * dataset["product_stderr"].values
    excess = loss - dataset["reference_loss"].values
    # By rounding, a loss may be below f*.
    gap = np.maximum(loss - dataset.attrs["optimal_loss"], np.maximum(excess, 0))
    if n_stderr:
        # An error of l_k is an error of both; alpha is at least beta, so a larger loss is stricter.
        shift = np.maximum(-n_stderr * _rounding(dataset), -gap)
        excess, gap = excess + shift, gap + shift
    return np.stack([product, excess, gap])
