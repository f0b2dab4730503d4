"""Figures of single runs, one run per data set."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr

from analyzers._panels import Curve, Panel
from analyzers.geometry.distance_travelled import distance_travelled
from analyzers.geometry.plots import LABELS, LOG_QUANTITIES
from analyzers.geometry.stored import store_geometry
from analyzers.no_wrong_turns.curves import (
    NEEDS_NETWORK,
    EpochSelection,
    curve,
    means_of,
    panel,
)
from analyzers.no_wrong_turns.runs import (
    COUNTER_EXAMPLES,
    TrainedRun,
    base_runs,
    data_sets,
    labelled_sweep,
    scheduled,
    title_of,
)

COUNTER_EXAMPLE_NAMES: Final = {
    "alm": "asymmetric linear model",
    "sm": "sinusoidal mixture",
}
"""Names of counter-examples as figures show them."""


def quantities_of_single_runs(
    runs: Sequence[TrainedRun], epochs: EpochSelection
) -> list[Panel]:
    """Figure 2: gamma, RSI and EB of one run per data set, one row per run."""
    return [
        _of_run(run, quantity, epochs)
        for run in data_sets(runs)
        for quantity in ("gamma", "rsi", "eb")
    ]


def distance_of_single_runs(
    runs: Sequence[TrainedRun], epochs: EpochSelection
) -> list[Panel]:
    """Figure 13: distance to x* of one run per data set."""
    return [_of_run(run, "distance", epochs) for run in data_sets(runs)]


def _of_run(run: TrainedRun, quantity: str, epochs: EpochSelection) -> Panel:
    title = title_of([run], run.workload)
    return panel(title, [("", run)], quantity, epochs, needs=NEEDS_NETWORK)


def lolr_and_schedule(
    runs: Sequence[TrainedRun], epochs: EpochSelection
) -> list[Panel]:
    """Figure 3: the locally optimal and the used learning rate, for one run per data set."""
    falling = {run.family: run for run in scheduled(runs)}
    panels = []
    for any_run in data_sets(runs):
        run = falling.get(any_run.family, any_run)
        means = means_of(run.run, epochs)
        panels += [
            Panel(
                title=title_of([run], run.workload),
                ylabel="loLR",
                curves=(curve(means, "lolr"),),
                needs=NEEDS_NETWORK,
            ),
            Panel(
                title=f"{run.settings['schedule']} schedule",
                ylabel="learning rate used",
                curves=(_used_rate(run, means),),
                needs=NEEDS_NETWORK,
            ),
        ]
    return panels


def _used_rate(run: TrainedRun, means: xr.Dataset) -> Curve:
    rate = run.run.steps["lr"].compute().groupby("epoch").mean()
    rate = rate.isel(epoch=np.isin(rate["epoch"], means["epoch"]))
    return Curve("", rate["epoch"].values, rate.values)


def counter_examples(runs: Sequence[TrainedRun], epochs: EpochSelection) -> list[Panel]:
    """Figure 5: gamma, RSI and EB at every step of the counter-examples, one row per run."""
    base = base_runs(runs)
    return [
        _every_step(base[name], quantity, epochs)
        for name in COUNTER_EXAMPLES
        if name in base
        for quantity in ("gamma", "rsi", "eb")
    ]


def _every_step(run: TrainedRun, quantity: str, epochs: EpochSelection) -> Panel:
    geometry = store_geometry(run.run)[[quantity]].compute()
    last = epochs.last(run.run.n_epochs)
    values = geometry[quantity].isel(step=np.flatnonzero(run.run.stored.epochs <= last))
    return Panel(
        title=f"{COUNTER_EXAMPLE_NAMES[run.family]}, every step",
        ylabel=LABELS[quantity],
        curves=(Curve("", values["step"].values, values.values, width=0.6),),
        needs="",
        is_robust=True,
        is_log=quantity in LOG_QUANTITIES,
        xlabel="step",
    )


def distance_travelled_by_optimizer(
    runs: Sequence[TrainedRun], epochs: EpochSelection
) -> list[Panel]:
    """Figure 12: distance from the start and length of the path, by optimizer."""
    del epochs  # The final epoch is shown as well.
    labelled = labelled_sweep(runs, "optimizer")
    travelled = [
        (label, distance_travelled(run.run).groupby("epoch").mean())
        for label, run in labelled
    ]
    return [
        Panel(
            title=title_of((run for _, run in labelled), what),
            ylabel=ylabel,
            curves=tuple(
                Curve(label, means["epoch"].values, means[variable].values)
                for label, means in travelled
            ),
            needs="runs that differ in the optimizer only",
        )
        for variable, what, ylabel in (
            ("from_start", "distance from the start", "$|x_k - x_0|$"),
            ("path_length", "length of the path", r"$\sum_{j<k} |u_j|$"),
        )
    ]
