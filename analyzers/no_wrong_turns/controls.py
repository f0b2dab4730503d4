"""A figure the paper has not: what gamma is where there is nothing to find."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from analyzers._panels import Curve, Panel
from analyzers.geometry.average_of_epochs import average_of_epochs
from analyzers.geometry.null import random_walk_gamma
from analyzers.geometry.plots import LABELS
from analyzers.no_wrong_turns.curves import Shown, curve, means_of
from analyzers.no_wrong_turns.runs import (
    data_sets,
    data_title,
    full_batch,
    label,
    sweep,
    training,
)
from trajstore.reading.run import Run

PLAIN: Final = "training"


def gamma_of_controls(runs: Sequence[Run], shown: Shown) -> list[Panel]:
    """Gamma of controls and of random walks, and of one run relative to other points."""
    return [
        _by_control(runs, shown),
        _with_full_batch(runs, shown),
        _by_walk(runs, shown),
        _by_reference(runs, shown),
    ]


def _by_control(runs: Sequence[Run], shown: Shown) -> Panel:
    chosen = sweep(runs, "control")
    names = [label(run, "control", chosen).replace("none", PLAIN) for run in chosen]
    return Panel(
        title=f"{_data(chosen)}controls",
        ylabel=LABELS["gamma"],
        curves=tuple(
            curve(means_of(run, shown), "gamma", label=name)
            for run, name in zip(chosen, names, strict=True)
        ),
        needs="a run with random labels or noise for gradients, and one without",
    )


def _with_full_batch(runs: Sequence[Run], shown: Shown) -> Panel:
    chosen = full_batch(runs)[:1]
    return Panel(
        title=f"{_data(chosen)}full batch",
        ylabel=LABELS["gamma"],
        curves=tuple(curve(means_of(run, shown), "gamma") for run in chosen),
        needs="a run with the full batch",
    )


def _by_walk(runs: Sequence[Run], shown: Shown) -> Panel:
    optimizers = [
        r for r in sweep(runs, "optimizer") if training(r)["optimizer"] == "sgd"
    ]
    chosen = (optimizers or data_sets(runs))[:1]
    curves = []
    for run in chosen:
        means = means_of(run, shown)
        walk = random_walk_gamma(run).groupby("epoch").mean()
        walk = walk.isel(epoch=np.isin(walk["epoch"], means["epoch"]))
        name = training(run)["optimizer"]
        curves += [
            curve(means, "gamma", label=name),
            Curve("random walk", walk["epoch"].values, walk.values, style="--"),
        ]
    return Panel(
        title=f"{_data(chosen)}random walk",
        ylabel=LABELS["gamma"],
        curves=tuple(curves),
        needs="a run of a network",
    )


def _by_reference(runs: Sequence[Run], shown: Shown) -> Panel:
    seeds = sweep(runs, "seed")
    chosen = (seeds or data_sets(runs))[:1]
    curves: list[Curve] = []
    for run in chosen:
        curves.append(curve(means_of(run, shown), "gamma", label="own end"))
        half = run.n_epochs // 2
        if half in run.stored.epoch_windows and half > 0:
            means = means_of(run, shown, reference=half)
            curves.append(curve(means, "gamma", label=f"epoch {half}"))
        last = [
            epoch
            for epoch in run.stored.epoch_windows
            if epoch >= 3 * run.n_epochs // 4
        ]
        if last:
            means = means_of(run, shown, reference=average_of_epochs(run, last))
            curves.append(
                curve(means, "gamma", label=f"mean of {min(last)}-{max(last)}")
            )
        if len(seeds) > 1:
            means = means_of(run, shown, reference=seeds[1])
            curves.append(curve(means, "gamma", label="end of another seed"))
    return Panel(
        title=f"{_data(chosen)}other points $x^*$",
        ylabel=LABELS["gamma"],
        curves=tuple(curves),
        needs="a run of a network",
    )


def _data(chosen: Sequence[Run]) -> str:
    return f"{data_title(chosen[0])}: " if chosen else ""
