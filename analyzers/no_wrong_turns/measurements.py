"""Two figures that are not in the paper: additional measurements, and theory of steps."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import xarray as xr

from analyzers._panels import Curve, Panel
from analyzers.geometry.epoch_means import epoch_means
from analyzers.geometry.plots import LABELS
from analyzers.geometry.stored import store_geometry
from analyzers.geometry.theory import guaranteed_decrease, linear_rate, step_contraction
from analyzers.gradients.lagged_gradients import lagged_gradients
from analyzers.no_wrong_turns.curves import EpochSelection, curve, means_of
from analyzers.no_wrong_turns.runs import (
    NOT_NEURAL_NETWORKS,
    TrainedRun,
    plain_runs,
    title_of,
)
from trajstore.format.attrs import DECOUPLED_DECAY, FIXED_BATCHES, FULL_BATCH, UPDATE
from trajstore.reading.run import Run

NEEDS_MEASUREMENTS: Final = (
    "a run that was recorded with additional gradients, or with updates"
)
NEEDS_UPDATES: Final = "a run that was recorded with updates"
DIRECTION_NAMES: Final = {FIXED_BATCHES: "ten fixed batches", FULL_BATCH: "all data"}
"""Names of measurements as figures show them."""

LAGS: Final = (1, 5, 20)


def other_measurements(
    runs: Sequence[TrainedRun], epochs: EpochSelection
) -> list[Panel]:
    """Show gamma of additional directions, and compare gradients and iterates by lag."""
    chosen = [run for run in plain_runs(runs) if run.run.measurements][:1]
    directions = [c for run in chosen for c in _by_direction(run, epochs)]
    updates = [c for run in chosen for c in _of_updates(run.run, epochs)]
    apart = [_by_lag(run.run, epochs) for run in chosen]
    names = ("orthogonal_cosine", "distance")
    cosines, distances = (
        tuple(c for curves in apart for c in curves[name]) for name in names
    )
    return [
        Panel(
            title=title_of(chosen, "gradients"),
            ylabel=LABELS["gamma"],
            curves=tuple(directions),
            needs=NEEDS_MEASUREMENTS,
        ),
        Panel(
            title=title_of(chosen, "updates"),
            ylabel=r"cosine of $x_k - x_{k+1}$ and $x_k - x^*$",
            curves=tuple(updates),
            needs=NEEDS_UPDATES,
        ),
        Panel(
            title=title_of(chosen, "gradients steps apart"),
            ylabel="cosine, orthogonal to $x - x^*$",
            curves=cosines,
            needs=NEEDS_MEASUREMENTS,
            is_ordered=True,
        ),
        Panel(
            title=title_of(chosen, "iterates steps apart"),
            ylabel="$|x_j - x_k|$",
            curves=distances,
            needs=NEEDS_MEASUREMENTS,
            is_ordered=True,
        ),
    ]


def _decay_in_gradient(run: TrainedRun) -> float:
    """Return the weight decay that is added to gradients, 0 if it is decoupled from them."""
    if run.settings["optimizer"] in DECOUPLED_DECAY:
        return 0.0
    decay: float = run.settings["weight_decay"]
    return decay


def _by_direction(run: TrainedRun, epochs: EpochSelection) -> Iterator[Curve]:
    recorded, decay = run.run, _decay_in_gradient(run)
    yield curve(means_of(recorded, epochs), "gamma", label="of steps")
    if decay and (recorded.spec.basis or recorded.spec.exact):
        means = _means(store_geometry(recorded, weight_decay=decay), recorded, epochs)
        yield Curve(
            "of steps, with weight decay",
            means["epoch"].values,
            means["gamma"].values,
            style="--",
        )
    for name, label in DIRECTION_NAMES.items():
        if name in recorded.measurements:
            geometry = store_geometry(recorded.measured(name))
            yield curve(_means(geometry, recorded, epochs), "gamma", label=label)


def _of_updates(run: Run, epochs: EpochSelection) -> Iterator[Curve]:
    if UPDATE in run.measurements:
        means = _means(store_geometry(run.measured(UPDATE)), run, epochs)
        yield Curve(
            "",
            means["epoch"].values,
            -means["gamma"].values,
            means["gamma_stderr"].values,
            -means["gamma_max"].values,
            -means["gamma_min"].values,
        )


def _means(geometry: xr.Dataset, run: Run, epochs: EpochSelection) -> xr.Dataset:
    return epochs.select(epoch_means(geometry.compute()), run.n_epochs)


def _by_lag(run: Run, epochs: EpochSelection) -> dict[str, list[Curve]]:
    """Return curves of means over the pairs of an epoch, by quantity."""
    # The error bar of a mean is that of a single pair: the probes are the same in every
    # step, so their errors hardly average out.
    pairs = lagged_gradients(run, lags=LAGS, every=7).compute()
    by_epoch = epochs.select(pairs.groupby("epoch").mean(), run.n_epochs)
    return {
        name: [
            Curve(
                f"{lag} steps" if lag > 1 else "1 step",
                by_epoch["epoch"].values,
                by_epoch[name].sel(lag=lag).values,
                by_epoch[f"{name}_stderr"].sel(lag=lag).values,
            )
            for lag in LAGS
        ]
        for name in ("orthogonal_cosine", "distance")
    }


def theory_and_data(runs: Sequence[TrainedRun], epochs: EpochSelection) -> list[Panel]:
    """Show the decrease of the squared distance in a step of SGD, in theory and measured."""
    chosen = [
        run
        for run in plain_runs(runs)
        if run.settings["optimizer"] == "sgd"
        and not run.settings["weight_decay"]
        and run.family not in NOT_NEURAL_NETWORKS
    ][:1]
    curves = [c for run in chosen for c in _decreases(run.run, epochs)]
    return [
        Panel(
            title="".join(title_of([run], run.workload) for run in chosen),
            ylabel="decrease of $|x_k - x^*|^2$ in a step",
            curves=tuple(curves),
            needs="a run of plain SGD without weight decay",
        )
    ]


def _decreases(run: Run, epochs: EpochSelection) -> Iterator[Curve]:
    geometry = store_geometry(run).compute()
    squares = geometry["distance"] ** 2
    after = squares.shift(step=-1)
    predicted = step_contraction(geometry, lr=run.steps.lr)["ratio"]
    steps = {
        "measured": 1 - after / squares,
        "by RSI, EB and the rate used": 1 - predicted,
        "at the locally optimal rate": 1 - guaranteed_decrease(geometry)["ratio"],
    }
    means = epochs.select(xr.Dataset(steps).groupby("epoch").mean(), run.n_epochs)
    x = means["epoch"].values
    for label in steps:
        yield Curve(label, x, means[label].values)
    last = epochs.last(run.n_epochs)
    before_end = geometry.isel(step=np.flatnonzero(run.stored.epochs <= last))
    guaranteed = 1 - float(linear_rate(before_end)["rate"])
    if np.isfinite(guaranteed):
        yield Curve("guaranteed by the extremes", x, np.full(len(x), guaranteed))
