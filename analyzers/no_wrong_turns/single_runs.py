"""Figures of single runs, one for each data set."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr

from analyzers._panels import Curve, Panel
from analyzers.geometry.distance_travelled import distance_travelled
from analyzers.geometry.plots import LABELS
from analyzers.geometry.stored import store_geometry
from analyzers.no_wrong_turns.curves import Shown, curve, means_of
from analyzers.no_wrong_turns.runs import (
    COUNTER_EXAMPLES,
    base_runs,
    data_sets,
    data_title,
    family,
    label,
    scheduled,
    sweep,
    training,
)
from trajstore.reading.run import Run

NEEDS_RUN: Final = "a run of a network"
COUNTER_NAMES: Final = {
    "alm": "asymmetric linear model",
    "sm": "sinusoidal mixture",
}
"""Counter-examples in words."""


def quantities_of_single_runs(runs: Sequence[Run], shown: Shown) -> list[Panel]:
    """Figure 2: gamma, RSI and EB of one run for each data set, one row each."""
    return [
        Panel(
            title=_title(run),
            ylabel=LABELS[quantity],
            curves=(curve(means_of(run, shown), quantity),),
            needs=NEEDS_RUN,
        )
        for run in data_sets(runs)
        for quantity in ("gamma", "rsi", "eb")
    ]


def lolr_and_schedule(runs: Sequence[Run], shown: Shown) -> list[Panel]:
    """Figure 3: locally optimal learning rate, beside the rate used, one row each."""
    falling = {family(run): run for run in scheduled(runs)}
    chosen = [falling.get(family(run), run) for run in data_sets(runs)]
    panels = []
    for run in chosen:
        means = means_of(run, shown)
        optimal, used = curve(means, "lolr"), _used_rate(run, means)
        panels += [
            Panel(title=_title(run), ylabel="loLR", curves=(optimal,), needs=NEEDS_RUN),
            Panel(
                title=f"{training(run)['schedule']} schedule",
                ylabel="learning rate used",
                curves=(used,),
                needs=NEEDS_RUN,
            ),
        ]
    return panels


def _used_rate(run: Run, means: xr.Dataset) -> Curve:
    rate = run.steps["lr"].compute().groupby("epoch").mean()
    rate = rate.isel(epoch=np.isin(rate["epoch"], means["epoch"]))
    return Curve("", rate["epoch"].values, rate.values)


def distance_of_single_runs(runs: Sequence[Run], shown: Shown) -> list[Panel]:
    """Figure 13: distance to x* of one run for each data set."""
    return [
        Panel(
            title=_title(run),
            ylabel=LABELS["distance"],
            curves=(curve(means_of(run, shown), "distance"),),
            needs=NEEDS_RUN,
        )
        for run in data_sets(runs)
    ]


def counter_examples(runs: Sequence[Run], shown: Shown) -> list[Panel]:
    """Figure 5: gamma, RSI and EB of every step of ALM and SM, one row each."""
    base = base_runs(runs)
    return [
        _every_step(base[name], shown, quantity)
        for name in COUNTER_EXAMPLES
        if name in base
        for quantity in ("gamma", "rsi", "eb")
    ]


def _every_step(run: Run, shown: Shown, quantity: str) -> Panel:
    geometry = store_geometry(run)[[quantity]].compute()
    last = shown.last(run.n_epochs)
    values = geometry[quantity].isel(step=np.flatnonzero(run.stored.epochs <= last))
    return Panel(
        title=f"{COUNTER_NAMES[family(run)]}, every step",
        ylabel=LABELS[quantity],
        curves=(Curve("", values["step"].values, values.values, width=0.6),),
        needs="",
        is_robust=True,
        xlabel="step",
    )


def distance_travelled_by_optimizer(runs: Sequence[Run], shown: Shown) -> list[Panel]:
    """Figure 12: distance from the start, and length of the path, by optimizer."""
    del shown  # The end is what matters here.
    chosen = sweep(runs, "optimizer")
    names = [label(run, "optimizer", chosen) for run in chosen]
    travelled = [distance_travelled(run).groupby("epoch").mean() for run in chosen]
    title = f"{data_title(chosen[0])}: " if chosen else ""
    return [
        Panel(
            title=f"{title}{what}",
            ylabel=ylabel,
            curves=tuple(
                Curve(name, means["epoch"].values, means[variable].values)
                for name, means in zip(names, travelled, strict=True)
            ),
            needs="runs that differ in the optimizer only",
        )
        for variable, what, ylabel in (
            ("from_start", "distance from the start", "$|x_k - x_0|$"),
            ("path_length", "length of the path", r"$\sum_{j<k} |u_j|$"),
        )
    ]


def _title(run: Run) -> str:
    title, name = data_title(run), training(run)["workload"]
    return f"{title}: {name}"
