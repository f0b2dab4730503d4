"""The alpha-beta condition along a path, and the pairs for which it holds.

R. Islamov, N. Ajroldi, A. Orvieto, A. Lucchi, "Loss Landscape Characterization of Neural
Networks without Over-Parametrization", NeurIPS 2024, definition 1.
"""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers.conditions.arrays import Steps, feasible, smallest_margin
from analyzers.geometry.losses import by_step, products, recorded_losses, replayed
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike

Datasets = xr.Dataset | Iterable[xr.Dataset]

MIN_GAP: Final = 0.1
"""Least alpha - beta, as in the paper's experiments."""

SOURCE: Final = (
    "R. Islamov, N. Ajroldi, A. Orvieto, A. Lucchi, 'Loss Landscape Characterization of "
    "Neural Networks without Over-Parametrization', NeurIPS 2024"
)
"""Where the condition is from."""


def alpha_beta(
    run: Run,
    *,
    reference: TargetLike = "final",
    reference_losses: npt.ArrayLike | xr.DataArray | None = None,
    optimal_loss: float = 0.0,
) -> xr.Dataset:
    r"""Compute what the alpha-beta condition compares, at every step.

    With :math:`f_{i_k}` the loss of the batch of step k, :math:`g_k` its gradient at
    :math:`x_k`, and :math:`a_k = \langle g_k, x_k - x^* \rangle`,
    :math:`l_k = f_{i_k}(x_k)`, :math:`r_k = f_{i_k}(x^*)`, the condition of the constants
    :math:`\alpha > \beta > 0` is [1]_, definition 1,

    .. math:: T_k(\alpha, \beta) = a_k - \alpha (l_k - r_k) + \beta (l_k - f^*) \ge 0 .

    The captions of the paper's figures print the last term with a minus. That cannot be
    meant: the definition has
    :math:`a_k \ge \alpha (l_k - r_k) - \beta (l_k - f^*)`, a larger :math:`\beta` makes it
    weaker, and with a minus the magnitudes that the paper reports do not come out.

    Parameters
    ----------
    run : trajstore.Run
        With the losses of steps: ``recorder.log(loss=loss)``.
    reference : str, int, Run or mapping, default: "final"
        The point x*, as `path_geometry` takes it. The paper takes the last iterate for a
        projection on the set of minimisers.
    reference_losses : array_like of float, optional
        r_k, the loss of every step's batch at x*, shape ``(step,)``; NaN where it is not
        known. Default: what ``traj-train replay`` left beside the run for this x*.
    optimal_loss : float, default: 0.0
        f*, a lower bound of the losses of all batches; the paper takes 0.

    Returns
    -------
    xarray.Dataset
        Dimension ``step`` with the coordinates ``epoch`` and ``iteration``; float64, in
        units of the loss. ``product``, a_k, and ``product_stderr``, lazy; ``loss``, l_k,
        and ``reference_loss``, r_k, which are exact. NaN where something is not known.

    Raises
    ------
    ValueError
        If losses are not recorded, if r_k are not there or not as many as steps, or if a
        loss is below `optimal_loss`.
    KeyError, TypeError
        As `path_geometry`.

    Notes
    -----
    a_k is unbiased, with the error of the sketch; it is independent from step to step, and
    contains nothing of that of the distance. Of a run recorded with ``exact=True`` it is
    exact.

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
    at_reference = by_step(reference_losses, run, "reference_losses")
    for what, values in (("", loss), (" at x*", at_reference)):
        _check_bound(values.values, optimal_loss, what)
    product, geometry = products(run, reference)
    of_batch = "loss of the batch"
    variables = {
        "loss": loss.assign_attrs(long_name=of_batch, units="1"),
        "reference_loss": at_reference.assign_attrs(
            long_name=f"{of_batch} at x*", units="1"
        ),
    }
    attributes = {
        name: geometry.attrs[name] for name in ("run", "reference", "reference_note")
    }
    return product.assign(variables).assign_attrs(
        {
            **attributes,
            "reference_losses": method,
            "optimal_loss": optimal_loss,
            "source": SOURCE,
        }
    )


def _check_bound(
    losses: npt.NDArray[np.float64], optimal_loss: float, what: str
) -> None:
    if (losses < optimal_loss).any():
        step = int(np.nanargmin(losses))
        raise ValueError(
            f"The loss of step {step}{what} is {losses[step]:.6g}, below optimal_loss = "
            f"{optimal_loss:g}, which must be a lower bound of all losses; give a smaller "
            "one."
        )


def margin(datasets: Datasets, alpha: npt.ArrayLike, beta: npt.ArrayLike) -> xr.Dataset:
    r"""Smallest T of all steps and runs, on a grid: the paper's figures.

    Parameters
    ----------
    datasets : xarray.Dataset or iterable of xarray.Dataset
        As returned by `alpha_beta`, of one run or of several.
    alpha, beta : array_like of float
        The grid, each one-dimensional; whether alpha exceeds beta is left to the caller.

    Returns
    -------
    xarray.Dataset
        Loaded. Dimensions ``alpha`` and ``beta``. ``margin``, float64, in units of the
        loss: :math:`\min_k T_k`; the condition holds along the paths where it is not
        negative. ``step`` and ``run``, int64: whose T it is, the run by its place among
        `datasets` (``attrs["runs"]``). ``n_steps`` and ``n_missing``: how many steps were
        compared, and how many left out because something of them is NaN.

    Raises
    ------
    ValueError
        If no step is known, or alpha or beta are not one-dimensional.

    Notes
    -----
    The smallest of many estimates is smaller than the smallest of what they estimate: the
    margin of sketched runs is biased downwards.
    """
    known = _known(datasets, 0.0)
    grid = [np.atleast_1d(np.asarray(axis, np.float64)) for axis in (alpha, beta)]
    if any(axis.ndim != 1 for axis in grid):
        raise ValueError(
            "`alpha` and `beta` must be one-dimensional, got the shapes "
            f"{[axis.shape for axis in grid]}."
        )
    values, index = smallest_margin(known.steps, *grid)
    dims = ("alpha", "beta")
    long_name = "smallest T of all steps"
    return xr.Dataset(
        {
            "margin": (dims, values, {"long_name": long_name, "units": "1"}),
            "step": (dims, known.step[index]),
            "run": (dims, known.run[index]),
            "n_steps": len(known.step),
            "n_missing": known.n_missing,
        },
        {"alpha": grid[0], "beta": grid[1]},
        known.attrs,
    )


def feasible_set(
    datasets: Datasets, *, min_gap: float = MIN_GAP, n_stderr: float = 0.0
) -> xr.Dataset:
    r"""All pairs for which the condition holds at every step of some runs, exactly.

    :math:`T_k` is linear in :math:`(\alpha, \beta)`, so that the pairs are an intersection
    of half-planes: those with :math:`\beta_{\min}(\alpha) \le \beta \le \alpha -` `min_gap`
    and :math:`\alpha` not less than that of the first corner. :math:`\beta_{\min}` is
    convex and piecewise linear; no grid is involved.

    Parameters
    ----------
    datasets : xarray.Dataset or iterable of xarray.Dataset
        As returned by `alpha_beta`, of one run or of several.
    min_gap : float, default: 0.1
        Least alpha - beta.
    n_stderr : float, default: 0
        Standard errors that are added to every a_k: with -1 and 1 the boundary moves as far
        as one standard error of all products together would move it.

    Returns
    -------
    xarray.Dataset
        Loaded. ``alpha`` and ``beta`` (vertex): corners of :math:`\beta_{\min}`, from the
        smallest alpha on; ``slope`` (vertex), that of the boundary to the right of the
        corner; ``step`` and ``run`` (vertex), which half-plane bounds beta there, -1 for
        beta >= 0. ``is_smallest`` (vertex): the boundary up to the last of these corners
        holds the pairs that no other feasible pair undercuts in both numbers.
        ``best_alpha`` and ``best_beta``: the pair of smallest sum, NaN if there is none.
        ``limit_step`` and ``limit_run``: whose half-plane keeps alpha from being smaller,
        -1 for beta >= 0. ``n_steps`` and ``n_missing`` as in `margin`. If no pair is
        feasible there are no corners, and ``attrs["note"]`` says which step prevents it.

    Raises
    ------
    ValueError
        If no step is known, or `min_gap` is negative.

    Notes
    -----
    If a pair is feasible, so is every pair that is larger by the same in both numbers.

    The set of a sketched run is biased: every step has to satisfy the condition, and of many
    the errors of some are large. It is too small rather than too large; sets of -1 and 1
    standard errors show how much that can be.
    """
    if not min_gap >= 0:
        raise ValueError(f"`min_gap` must be at least 0, got {min_gap}.")
    known = _known(datasets, n_stderr)
    found = feasible(known.steps, min_gap)
    is_empty = len(found.alpha) == 0
    # Smallest sums and smallest betas are where the convex boundary turns.
    turns = np.flatnonzero(found.slope >= 0)
    best = np.flatnonzero(found.slope >= -1)
    pair = (np.nan, np.nan)
    if not is_empty:
        pair = found.alpha[best[0]], found.beta[best[0]]
    is_smallest = np.arange(len(found.alpha)) <= (0 if is_empty else turns[0])
    attributes = known.attrs | {"min_gap": min_gap, "n_stderr": n_stderr}
    attributes["note"] = "feasible pairs have no upper end"
    limit_step, limit_run = known.place(found.limit)
    if is_empty:
        attributes["note"] = (
            f"no pair is feasible: its loss at x* is the least possible, and step "
            f"{limit_step} of {attributes['runs'][limit_run]} has a gradient that does "
            "not point away from x* enough"
        )
    places = [known.place(plane) for plane in found.plane.tolist()]
    steps, runs = np.array(places, np.int64).reshape(-1, 2).T
    return xr.Dataset(
        {
            "alpha": ("vertex", found.alpha),
            "beta": ("vertex", found.beta),
            "slope": ("vertex", found.slope),
            "step": ("vertex", steps),
            "run": ("vertex", runs),
            "is_smallest": ("vertex", is_smallest),
            "best_alpha": pair[0],
            "best_beta": pair[1],
            "limit_step": limit_step,
            "limit_run": limit_run,
            "n_steps": len(known.step),
            "n_missing": known.n_missing,
        },
        attrs=attributes,
    )


def smallest_beta(pairs: xr.Dataset, alpha: npt.ArrayLike) -> xr.DataArray:
    """Smallest beta that is feasible with an alpha.

    Parameters
    ----------
    pairs : xarray.Dataset
        As returned by `feasible_set`.
    alpha : array_like of float
        One-dimensional.

    Returns
    -------
    xarray.DataArray
        float64 along ``alpha``; NaN where no beta is feasible.
    """
    at = np.atleast_1d(np.asarray(alpha, np.float64))
    corners = pairs["alpha"].values
    place = np.searchsorted(corners, at, side="right") - 1
    beta = np.full(len(at), np.nan)
    is_there, i = place >= 0, place[place >= 0]
    slope = pairs["slope"].values[i]
    beta[is_there] = pairs["beta"].values[i] + slope * (at[is_there] - corners[i])
    attributes = {"long_name": "smallest feasible beta", "units": "1"}
    return xr.DataArray(beta, {"alpha": at}, "alpha", attrs=attributes)


class _Known:
    """Steps of several runs of which everything is known, one behind the other.

    Parameters
    ----------
    datasets : list of xarray.Dataset
        Loaded, at least one.
    n_stderr : float
        Standard errors that are added to the products.
    """

    def __init__(self, datasets: list[xr.Dataset], n_stderr: float) -> None:
        columns: list[Any] = []
        n_steps = 0
        for i, dataset in enumerate(datasets):
            product = dataset["product"].values
            if n_stderr:
                product = product + n_stderr * dataset["product_stderr"].values
            loss, at_reference = (
                dataset[name].values for name in ("loss", "reference_loss")
            )
            step, gap = dataset["step"].values, loss - dataset.attrs["optimal_loss"]
            rows = np.stack([product, loss - at_reference, gap])
            is_known = np.isfinite(rows).all(0)
            run = np.full(is_known.sum(), i)
            columns.append((*rows[:, is_known], step[is_known], run))
            n_steps += len(step)
        *values, self.step, self.run = map(np.concatenate, zip(*columns, strict=True))
        self.steps = Steps(*values)
        self.n_missing = n_steps - len(self.step)
        self.attrs: dict[str, Any] = {
            "runs": [dataset.attrs["run"] for dataset in datasets],
            "reference": [dataset.attrs["reference"] for dataset in datasets],
            "source": SOURCE,
        }

    def place(self, index: int) -> tuple[int, int]:
        """Return step and run of a half-plane, -1 for that of beta."""
        return (-1, -1) if index < 0 else (int(self.step[index]), int(self.run[index]))


def _known(datasets: Datasets, n_stderr: float) -> _Known:
    given = [datasets] if isinstance(datasets, xr.Dataset) else list(datasets)
    if not given:
        raise ValueError(
            "Expected at least one dataset of analyzers.alpha_beta, got none."
        )
    known = _Known([dataset.compute() for dataset in given], n_stderr)
    if len(known.step) == 0:
        raise ValueError(
            f"None of the {known.n_missing} steps has a product, a loss and a loss at x*; "
            "there is nothing to compare."
        )
    return known
