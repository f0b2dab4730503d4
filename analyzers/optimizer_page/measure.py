"""Numbers of optimizers: means over seeds, with their errors."""

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import xarray as xr

from analyzers.conditions.alpha_beta import alpha_beta, feasible_set
from analyzers.curvature.edge_of_stability import edge_of_stability
from analyzers.geometry.epoch_means import epoch_means
from analyzers.geometry.stored import store_geometry
from analyzers.no_wrong_turns.claims.statistics import (
    distance_from_start,
    mid_run,
    middle,
    relative_variance,
)
from analyzers.no_wrong_turns.claims.verdict import UNKNOWN, Measured
from analyzers.no_wrong_turns.runs import TrainedRun, sweep
from trajstore.format.attrs import OPTIMIZERS

Measure = Callable[[TrainedRun], Measured]


NO_PAIR: Final = Measured(math.inf, math.nan)
"""The smallest pair of a run whose steps rule out all pairs."""


class Quantity(NamedTuple):
    """A number of a run, and its name in tables."""

    title: str
    measure: Measure


def _of_geometry(statistic: Callable[..., Measured]) -> Measure:
    """Return the measure that applies a statistic of geometry to the middle epochs."""

    def measure(run: TrainedRun) -> Measured:
        geometry = store_geometry(run.run).compute()
        return statistic(geometry, run.run, middle(run.run.n_epochs))

    return measure


def smallest_pair(run: TrainedRun) -> Measured:
    """Return the smallest alpha + beta for which the alpha-beta condition holds, or infinity."""
    # The error is half of what one standard error of all products changes.
    try:
        terms = alpha_beta(run.run)
    except ValueError as error:  # losses at x* need `traj-train replay`
        warnings.warn(f"{error}", UserWarning, stacklevel=2)
        return UNKNOWN
    sums = {}
    for n_stderr in (-1.0, 0.0, 1.0):
        found = feasible_set(terms, n_stderr=n_stderr)
        sums[n_stderr] = float(found["best_alpha"] + found["best_beta"])
    if math.isnan(sums[0.0]):
        return NO_PAIR
    return Measured(sums[0.0], abs(sums[-1.0] - sums[1.0]) / 2)


def sharpness_over_threshold(run: TrainedRun) -> Measured:
    """Return the mean sharpness over the stability threshold in the middle epochs."""
    try:
        ratio = edge_of_stability(run.run)["ratio"]
    except (KeyError, ValueError):  # not logged, or no threshold is known
        return UNKNOWN
    first, stop = middle(run.run.n_epochs)
    inside = ratio.values[(ratio["epoch"] >= first) & (ratio["epoch"] < stop)]
    if len(inside) == 0:
        return UNKNOWN
    spread = (
        inside.std(ddof=1) / math.sqrt(len(inside)) if len(inside) > 1 else math.nan
    )
    return Measured(float(inside.mean()), float(spread))


def last_loss(run: TrainedRun) -> Measured:
    """Return the mean training loss of the last epoch."""
    steps = run.run.steps
    losses = steps["loss"].values[steps["epoch"].values == run.run.n_epochs - 1]
    return Measured(
        float(losses.mean()), float(losses.std(ddof=1) / len(losses) ** 0.5)
    )


QUANTITIES: Final[Mapping[str, Quantity]] = {
    "loss": Quantity("training loss, last epoch", last_loss),
    "gamma": Quantity("gamma", _of_geometry(mid_run("gamma"))),
    "rsi": Quantity("RSI", _of_geometry(mid_run("rsi"))),
    "eb": Quantity("EB", _of_geometry(mid_run("eb"))),
    "variance": Quantity("variance of gamma / gamma²", _of_geometry(relative_variance)),
    "distance": Quantity(
        "distance from start to end", _of_geometry(distance_from_start)
    ),
    "pair": Quantity("smallest alpha + beta", smallest_pair),
    "sharpness": Quantity("sharpness / threshold", sharpness_over_threshold),
}
"""What the page compares, in this order."""


class Compared(NamedTuple):
    """Runs by optimizer, and their numbers by quantity and optimizer."""

    runs: Mapping[str, Sequence[TrainedRun]]
    numbers: Mapping[str, Mapping[str, Measured]]


def compare_optimizers(runs: Iterable[TrainedRun]) -> Compared:
    """Choose runs that differ in optimizer, learning rate and seed, and measure them."""
    chosen: defaultdict[str, list[TrainedRun]] = defaultdict(list)
    for group in _by_seed(runs):
        for run in sweep(group, "optimizer"):
            chosen[run.settings["optimizer"]].append(run)
    ordered = {name: chosen[name] for name in OPTIMIZERS if name in chosen}
    if len(ordered) < 2:
        raise ValueError(
            "The page needs runs of at least two optimizers that are otherwise alike, found "
            f"{', '.join(ordered) or 'none'}; record some with traj-train sweep "
            "optimizers-embedded."
        )
    numbers = {
        name: {
            optimizer: over_seeds([quantity.measure(run) for run in of_optimizer])
            for optimizer, of_optimizer in ordered.items()
        }
        for name, quantity in QUANTITIES.items()
    }
    return Compared(ordered, numbers)


def over_seeds(numbers: Sequence[Measured]) -> Measured:
    """Average over seeds; the error is the larger of the spread's and the runs' own."""
    values = np.array([number.value for number in numbers])
    if np.isinf(values).any():
        return NO_PAIR
    own = np.array([number.stderr for number in numbers])
    n = len(values)
    from_runs = float(np.sqrt(np.mean(own**2) / n))
    from_spread = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0
    return Measured(float(values.mean()), max(from_runs, from_spread))


def means_by_epoch(runs: Sequence[TrainedRun], name: str) -> xr.Dataset:
    """Return the mean over seeds of a quantity by epoch, and its range over seeds."""
    values = []
    for run in runs:
        means = epoch_means(store_geometry(run.run))[name].compute()
        values.append(means.isel(epoch=slice(None, -1)))
    seeds = xr.concat(values, "seed", join="inner")
    return xr.Dataset(
        {
            "mean": seeds.mean("seed"),
            "low": seeds.min("seed"),
            "high": seeds.max("seed"),
        }
    )


def _by_seed(runs: Iterable[TrainedRun]) -> Iterable[list[TrainedRun]]:
    groups: defaultdict[int, list[TrainedRun]] = defaultdict(list)
    for run in runs:
        groups[run.settings["seed"]].append(run)
    return groups.values()
