"""Figures the paper has not: what else is measured, and what theory says of the steps."""

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
from analyzers.no_wrong_turns.curves import Shown, curve, means_of
from analyzers.no_wrong_turns.runs import (
    NO_NETWORKS,
    data_title,
    family,
    plain_runs,
    training,
)
from trajstore.reading.run import Run

NEEDS: Final = "a run that was recorded with other gradients, or with updates"
DIRECTIONS: Final = {"fixed_batches": "ten fixed batches", "full_batch": "all data"}
"""Measurements in words."""

LAGS: Final = (1, 5, 20)


def other_measurements(runs: Sequence[Run], shown: Shown) -> list[Panel]:
    """Gamma of other directions, and how gradients some steps apart relate."""
    chosen = [run for run in plain_runs(runs) if run.measurements][:1]
    title = f"{data_title(chosen[0])}: " if chosen else ""
    directions = [c for run in chosen for c in _by_direction(run, shown)]
    updates = [c for run in chosen for c in _of_updates(run, shown)]
    apart = [_by_lag(run, shown) for run in chosen]
    names = ("orthogonal_cosine", "distance")
    cosines, distances = (
        tuple(c for curves in apart for c in curves[name]) for name in names
    )
    return [
        Panel(
            title=f"{title}gradients",
            ylabel=LABELS["gamma"],
            curves=tuple(directions),
            needs=NEEDS,
        ),
        Panel(
            title=f"{title}changes of x",
            ylabel=r"cosine of $x_k - x_{k+1}$ and $x_k - x^*$",
            curves=tuple(updates),
            needs="a run that was recorded with updates",
        ),
        Panel(
            title=f"{title}gradients steps apart, beside $x - x^*$",
            ylabel="cosine",
            curves=cosines,
            needs=NEEDS,
            is_ordered=True,
        ),
        Panel(
            title=f"{title}iterates steps apart",
            ylabel="$|x_j - x_k|$",
            curves=distances,
            needs=NEEDS,
            is_ordered=True,
        ),
    ]


def _by_direction(run: Run, shown: Shown) -> Iterator[Curve]:
    yield curve(means_of(run, shown), "gamma", label="of steps")
    decay = training(run)["weight_decay"]
    if decay and (run.spec.basis or run.spec.exact):
        geometry = store_geometry(run, weight_decay=decay).compute()
        means = _shown(epoch_means(geometry), run, shown)
        yield Curve(
            "of steps, with weight decay",
            means["epoch"].values,
            means["gamma"].values,
            style="--",
        )
    for name, label in DIRECTIONS.items():
        if name in run.measurements:
            geometry = store_geometry(run.measured(name)).compute()
            means = _shown(epoch_means(geometry), run, shown)
            yield curve(means, "gamma", label=label)


def _of_updates(run: Run, shown: Shown) -> Iterator[Curve]:
    if "update" in run.measurements:
        geometry = store_geometry(run.measured("update")).compute()
        means = _shown(epoch_means(geometry), run, shown)
        yield Curve(
            "",
            means["epoch"].values,
            -means["gamma"].values,
            means["gamma_stderr"].values,
            -means["gamma_max"].values,
            -means["gamma_min"].values,
        )


def _by_lag(run: Run, shown: Shown) -> dict[str, list[Curve]]:
    """Means over the pairs of an epoch; their errors are hardly less than those of one."""
    pairs = lagged_gradients(run, lags=LAGS, every=7).compute()
    by_epoch = _shown(pairs.groupby("epoch").mean(), run, shown)
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


def theory_and_data(runs: Sequence[Run], shown: Shown) -> list[Panel]:
    """How much nearer to x* a step of plain SGD comes, by the equations and in fact."""
    chosen = [
        run
        for run in plain_runs(runs)
        if training(run)["optimizer"] == "sgd"
        and not training(run)["weight_decay"]
        and family(run) not in NO_NETWORKS
    ][:1]
    names = [f"{data_title(run)}: {training(run)['workload']}" for run in chosen]
    curves = [c for run in chosen for c in _decreases(run, shown)]
    return [
        Panel(
            title="".join(names),
            ylabel="decrease of $|x_k - x^*|^2$ in a step",
            curves=tuple(curves),
            needs="a run of plain SGD without weight decay",
        )
    ]


def _decreases(run: Run, shown: Shown) -> Iterator[Curve]:
    geometry = store_geometry(run).compute()
    squares = geometry["distance"] ** 2
    after = squares.shift(step=-1)
    steps = {
        "measured": 1 - after / squares,
        "by RSI, EB and the rate used": 1
        - step_contraction(geometry, lr=run.steps.lr)["ratio"],
        "at the locally optimal rate": 1 - guaranteed_decrease(geometry)["ratio"],
    }
    means = _shown(xr.Dataset(steps).groupby("epoch").mean(), run, shown)
    epochs = means["epoch"].values
    for label, style in zip(steps, ("-", "--", "-"), strict=True):
        yield Curve(label, epochs, means[label].values, style=style)
    before_end = geometry.isel(
        step=np.flatnonzero(run.stored.epochs <= shown.last(run.n_epochs))
    )
    promised = 1 - float(linear_rate(before_end)["rate"])
    if np.isfinite(promised):
        epochs = means["epoch"].values
        yield Curve(
            "guaranteed by the extremes", epochs, np.full(len(epochs), promised)
        )


def _shown(means: xr.Dataset, run: Run, shown: Shown) -> xr.Dataset:
    return means.isel(epoch=np.flatnonzero(means["epoch"] <= shown.last(run.n_epochs)))
