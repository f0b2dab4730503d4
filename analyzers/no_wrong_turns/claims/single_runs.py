"""Statements on single runs, each tested on several."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import xarray as xr

from analyzers.no_wrong_turns.claims.mid_run import (
    Epochs,
    mean_over,
    middle,
    share_of_negative,
    steps_of,
)
from analyzers.no_wrong_turns.claims.verdict import (
    IN_WORDS,
    UNKNOWN,
    Finding,
    Measured,
    all_of,
    inside,
    listed,
    ratio,
)

FEW: Final = 0.01
"""Share of steps that is called almost none."""

STEADY: Final = 2.0
"""Largest ratio of the epochs of what is called steady."""

LATE: Final = 155 / 180
"""Where the late part of a run begins: the paper leaves out what is later on ImageNet."""

NEAR: Final = 0.05
"""Distance to x*, relative to that at the start, that is called negligible."""

Geometries = Mapping[str, tuple[xr.Dataset, int]]
"""Geometry, loaded, and number of epochs of runs, by what to call them."""


def almost_none_negative(runs: Geometries) -> Finding:
    """Test whether gamma is almost never negative before the final epoch.

    Parameters
    ----------
    runs : mapping from str to tuple
        Geometries and epochs.

    Returns
    -------
    Finding
        Seen if of every run the share of steps below minus two standard errors is less
        than `FEW`. Not decided where single steps tell nothing: where the standard error
        of most is larger than half of the mean.
    """
    shares, verdicts = {}, []
    for name, (geometry, n_epochs) in runs.items():
        epochs = Epochs(0, max(1, n_epochs - 1))
        shares[name] = share_of_negative(geometry, epochs)
        steps = steps_of(geometry, epochs)
        typical = float(steps["gamma_stderr"].median())
        verdict = inside(shares[name], high=FEW)
        is_blind = verdict == "seen" and 2 * typical > float(steps["gamma"].mean())
        verdicts.append("not decided" if is_blind else verdict)
    return Finding(
        claim="Before the final epoch almost no step has a negative gamma: less than 1 in "
        "100 is below zero by two standard errors.",
        figure="2",
        seen=all_of(verdicts),
        numbers=f"Shares: {listed(shares.items())}. Errors alone would give 0.023 if gamma "
        "were 0.",
    )


def is_steady(
    runs: Geometries, *, quantity: str, figure: str, where: str = ""
) -> Finding:
    """Test whether the middle epochs of a run differ by a small factor only.

    Parameters
    ----------
    runs : mapping from str to tuple
        Geometries and epochs.
    quantity : str
        One of the quantities of `analyzers.path_geometry`.
    figure : str
        The figure that shows it.
    where : str, default: ""
        Which runs were chosen, in words.

    Returns
    -------
    Finding
        Seen if of every run the largest and the smallest mean of the middle epochs have a
        ratio below `STEADY`.
    """
    quotients = {}
    for name, (geometry, n_epochs) in runs.items():
        epochs = middle(n_epochs)
        means = [
            _mean_of_epoch(geometry, quantity, epoch)
            for epoch in range(epochs.first, epochs.stop)
        ]
        quotients[name] = _largest_over_smallest(means)
    return Finding(
        claim=f"{IN_WORDS[quantity]} is steady{where}: the means of the middle epochs differ by less "
        f"than a factor of {STEADY:g}.",
        figure=figure,
        seen=all_of(inside(quotient, high=STEADY) for quotient in quotients.values()),
        numbers=f"Largest over smallest: {listed(quotients.items())}.",
    )


def _largest_over_smallest(means: Sequence[Measured]) -> Measured:
    """Return infinity if one is not positive; one alone tells nothing."""
    if len(means) < 2:
        return UNKNOWN
    low, high = min(means), max(means)
    return ratio(high, low) if low.value > 0 else Measured(math.inf, 0.0)


def _mean_of_epoch(geometry: xr.Dataset, name: str, epoch: int) -> Measured:
    return mean_over(geometry, name, Epochs(epoch, epoch + 1))


def lolr_follows_schedule(
    runs: Mapping[str, tuple[xr.Dataset, xr.DataArray]],
) -> Finding:
    """Test whether the locally optimal rate is high where the rate used was.

    Parameters
    ----------
    runs : mapping from str to tuple
        Means of epochs, as of `analyzers.epoch_means`, and means of the learning rate
        used, by epoch, without the final epoch.

    Returns
    -------
    Finding
        Seen if the rank correlation over the epochs is positive; its standard error is
        that of uncorrelated ranks, ``1 / sqrt(n - 1)``. Neighbouring epochs are alike, so
        that two trends that have nothing to do with each other are told apart badly.
    """
    correlations = {}
    for name, (means, used) in runs.items():
        ranks = [_ranks(values) for values in (means["lolr"].values, used.values)]
        correlation = float(np.asarray(np.corrcoef(ranks))[0, 1])
        n = len(used)
        correlations[name] = Measured(
            correlation, 1 / math.sqrt(n - 1) if n > 1 else math.nan
        )
    return Finding(
        claim="Under a schedule the locally optimal learning rate is high where the rate "
        "used is: their rank correlation over epochs is positive.",
        figure="3",
        seen=all_of(inside(number, low=0) for number in correlations.values()),
        numbers=f"Rank correlation: {listed(correlations.items())}.",
    )


def _ranks(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[float]:
    """Return the place of every value in their order; equal ones share theirs."""
    return [float(np.mean(np.flatnonzero(np.sort(values) == v))) for v in values]


def distance_is_negligible_late(runs: Geometries) -> Finding:
    """Test whether x is next to x* long before the end of a falling schedule.

    Parameters
    ----------
    runs : mapping from str to tuple
        Geometries and epochs, of runs whose schedule falls to zero.

    Returns
    -------
    Finding
        Seen if the mean distance after `LATE` of the epochs is less than `NEAR` of that
        at the first step.
    """
    shares = {}
    for name, (geometry, n_epochs) in runs.items():
        late = mean_over(geometry, "distance", Epochs(int(LATE * n_epochs), n_epochs))
        start = geometry["distance"].values[0]
        shares[name] = Measured(late.value / start, late.stderr / start)
    return Finding(
        claim="Where the learning rate falls to zero, the distance to x* is negligible in "
        "the last seventh of the epochs: less than a twentieth of that at the start.",
        figure="13",
        seen=all_of(inside(share, high=NEAR) for share in shares.values()),
        numbers=f"Relative to the start: {listed(shares.items())}.",
    )


def is_negative_at_times(runs: Geometries) -> Finding:
    """Test whether counter-examples have more negative steps than errors explain.

    Parameters
    ----------
    runs : mapping from str to tuple
        Geometries and epochs.

    Returns
    -------
    Finding
        Seen if of every run more than 0.023 of the steps before the final epoch are
        negative by more than two standard errors: what errors alone would give at most.
    """
    shares = {
        name: share_of_negative(geometry, Epochs(0, max(1, n_epochs - 1)))
        for name, (geometry, n_epochs) in runs.items()
    }
    return Finding(
        claim="The asymmetric linear model and the sinusoidal mixture have negative gamma "
        "at times: at more steps than errors explain.",
        figure="5",
        seen=all_of(inside(share, low=0.023) for share in shares.values()),
        numbers=f"Shares of steps: {listed(shares.items())}.",
    )
