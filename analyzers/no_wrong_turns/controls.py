"""Figure of gamma in controls, which is not in the paper."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from analyzers._panels import Curve, Panel
from analyzers.geometry.average_of_epochs import average_of_epochs
from analyzers.geometry.null import random_walk_gamma
from analyzers.geometry.plots import LABELS
from analyzers.no_wrong_turns.curves import (
    NEEDS_NETWORK,
    EpochSelection,
    curve,
    means_of,
    panel,
)
from analyzers.no_wrong_turns.runs import (
    TrainedRun,
    data_sets,
    full_batch_runs,
    labelled_sweep,
    sweep,
    title_of,
)
from trajstore.reading.run import Run

NO_CONTROL: Final = "training"
"""Label of runs that are not controls."""


def gamma_of_controls(
    runs: Sequence[TrainedRun], epochs: EpochSelection
) -> list[Panel]:
    """Show gamma of controls, of random walks, and of one run relative to other targets."""
    controls = [
        (label.replace("none", NO_CONTROL), run)
        for label, run in labelled_sweep(runs, "control")
    ]
    full = full_batch_runs(runs)[:1]
    return [
        panel(
            title_of((run for _, run in controls), "controls"),
            controls,
            "gamma",
            epochs,
            needs="a run with random labels or with noise as gradients, and one with neither",
        ),
        panel(
            title_of(full, "full batch"),
            [("", run) for run in full],
            "gamma",
            epochs,
            needs="a run with the full batch",
        ),
        _by_walk(runs, epochs),
        _by_target(runs, epochs),
    ]


def _by_walk(runs: Sequence[TrainedRun], epochs: EpochSelection) -> Panel:
    sgd = [r for r in sweep(runs, "optimizer") if r.settings["optimizer"] == "sgd"]
    chosen = (sgd or data_sets(runs))[:1]
    curves = []
    for run in chosen:
        means = means_of(run.run, epochs)
        walk = random_walk_gamma(run.run).groupby("epoch").mean()
        walk = walk.isel(epoch=np.isin(walk["epoch"], means["epoch"]))
        curves += [
            curve(means, "gamma", label=run.settings["optimizer"]),
            Curve("random walk", walk["epoch"].values, walk.values, style="--"),
        ]
    return _gamma_panel(title_of(chosen, "random walk"), curves)


def _by_target(runs: Sequence[TrainedRun], epochs: EpochSelection) -> Panel:
    seeds = sweep(runs, "seed")
    chosen = (seeds or data_sets(runs))[:1]
    other_seeds = [run.run for run in seeds[1:2]]
    curves = [c for run in chosen for c in _of_targets(run.run, other_seeds, epochs)]
    return _gamma_panel(title_of(chosen, "other points $x^*$"), curves)


def _of_targets(
    run: Run, other_seeds: Sequence[Run], epochs: EpochSelection
) -> Iterator[Curve]:
    yield curve(means_of(run, epochs), "gamma", label="own end")
    half = run.n_epochs // 2
    if half in run.stored.epoch_windows and half > 0:
        means = means_of(run, epochs, target=half)
        yield curve(means, "gamma", label=f"epoch {half}")
    late_epochs = [
        epoch for epoch in run.stored.epoch_windows if epoch >= 3 * run.n_epochs // 4
    ]
    if late_epochs:
        means = means_of(run, epochs, target=average_of_epochs(run, late_epochs))
        label = f"mean of {min(late_epochs)}-{max(late_epochs)}"
        yield curve(means, "gamma", label=label)
    for other_run in other_seeds:
        means = means_of(run, epochs, target=other_run)
        yield curve(means, "gamma", label="end of another seed")


def _gamma_panel(title: str, curves: Sequence[Curve]) -> Panel:
    return Panel(
        title=title,
        ylabel=LABELS["gamma"],
        curves=tuple(curves),
        needs=NEEDS_NETWORK,
    )
