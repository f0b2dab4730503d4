"""Figures that compare settings, with one curve for each run of a sweep."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from analyzers._panels import Panel
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
    labelled_sweep,
    mlp_and_resnet,
    models,
    sweep,
    title_of,
)

SETTING_NAMES: Final = {
    "batch_size": "batch size",
    "optimizer": "optimizer",
    "seed": "seed",
    "epochs": "epoch budget",
}
"""Names of settings as figures show them."""

ORDERED_SETTINGS: Final = ("batch_size", "epochs")
"""Settings whose values have an order."""


def gamma_by_setting(runs: Sequence[TrainedRun], epochs: EpochSelection) -> list[Panel]:
    """Figure 1: gamma by depth and width, batch size, optimizer, and data set."""
    labelled = [(run.title, run) for run in data_sets(runs)]
    return [
        _of_models(runs, epochs, "gamma"),
        _of_sweep(runs, epochs, "gamma", "batch_size"),
        _of_sweep(runs, epochs, "gamma", "optimizer"),
        panel("data sets", labelled, "gamma", epochs, needs=NEEDS_NETWORK),
    ]


def gamma_by_seed_and_budget(
    runs: Sequence[TrainedRun], epochs: EpochSelection
) -> list[Panel]:
    """Figure 4: gamma by seed, by epoch budget, and by the epoch of x* in one run."""
    return [
        _of_sweep(runs, epochs, "gamma", "seed"),
        _of_sweep(runs, epochs, "gamma", "epochs"),
        _budgets_from_one_run(runs, epochs),
    ]


def gamma_by_batch_size(
    runs: Sequence[TrainedRun], epochs: EpochSelection
) -> list[Panel]:
    """Figure 6: gamma by batch size, and gamma divided by the root of the batch size."""
    labelled = labelled_sweep(runs, "batch_size")
    curves = [
        curve(
            means_of(run.run, epochs),
            "gamma",
            label=label,
            scale=1 / np.sqrt(run.settings["batch_size"]),
        )
        for label, run in labelled
    ]
    scaled = Panel(
        title=title_of((run for _, run in labelled), "over its square root"),
        ylabel=r"$\gamma / \sqrt{B}$",
        curves=tuple(curves),
        needs=_needs("batch_size"),
        is_ordered=True,
    )
    return [_of_sweep(runs, epochs, "gamma", "batch_size"), scaled]


def rsi_and_eb_by_model(
    runs: Sequence[TrainedRun], epochs: EpochSelection
) -> list[Panel]:
    """Figure 7: RSI and EB by model."""
    return [_of_models(runs, epochs, quantity) for quantity in ("rsi", "eb")]


def rsi_and_eb_by(
    runs: Sequence[TrainedRun], epochs: EpochSelection, *, factor: str
) -> list[Panel]:
    """Figures 8 to 11: RSI and EB by the setting `factor`."""
    return [_of_sweep(runs, epochs, quantity, factor) for quantity in ("rsi", "eb")]


def gamma_of_mlp_and_resnet(
    runs: Sequence[TrainedRun], epochs: EpochSelection
) -> list[Panel]:
    """Figure 14: gamma of an MLP and of a ResNet on the same data."""
    pair = list(mlp_and_resnet(runs).values())
    needs = "an MLP and a ResNet on the same data"
    title = title_of(pair, "model")
    return [panel(title, _by_workload(pair), "gamma", epochs, needs=needs)]


def _of_sweep(
    runs: Sequence[TrainedRun], epochs: EpochSelection, quantity: str, factor: str
) -> Panel:
    labelled = labelled_sweep(runs, factor)
    return panel(
        title_of((run for _, run in labelled), SETTING_NAMES[factor]),
        labelled,
        quantity,
        epochs,
        needs=_needs(factor),
        is_ordered=factor in ORDERED_SETTINGS,
    )


def _of_models(
    runs: Sequence[TrainedRun], epochs: EpochSelection, quantity: str
) -> Panel:
    chosen = models(runs)
    needs = "two models on the same data"
    title = title_of(chosen, "model")
    return panel(title, _by_workload(chosen), quantity, epochs, needs=needs)


def _by_workload(chosen: Sequence[TrainedRun]) -> list[tuple[str, TrainedRun]]:
    """Label runs with their workload, and with the optimizer if the optimizers differ."""
    optimizers = [run.settings["optimizer"] for run in chosen]
    suffixes = [f", {name}" if len({*optimizers}) > 1 else "" for name in optimizers]
    return [
        (run.workload + suffix, run)
        for run, suffix in zip(chosen, suffixes, strict=True)
    ]


def _budgets_from_one_run(runs: Sequence[TrainedRun], epochs: EpochSelection) -> Panel:
    """Show gamma of the longest run, with x* at several epochs."""
    # x* is taken where shorter runs ended. Without shorter runs, it is taken at a half and at
    # three quarters of the epochs.
    chosen = sweep(runs, "epochs") or data_sets(runs)[:1]
    if not chosen:
        return panel("x* within one run", [], "gamma", epochs, needs="a run")
    longest = chosen[-1].run
    n = longest.n_epochs
    ends = [run.run.n_epochs for run in chosen[:-1]] or [n // 2, 3 * n // 4]
    curves = [
        curve(means_of(longest, epochs, target=epoch), "gamma", label=str(epoch))
        for epoch in sorted(set(ends) & set(longest.stored.epoch_windows) - {0})
    ]
    whole = curve(means_of(longest, epochs), "gamma", label=f"{n}, the end")
    return Panel(
        title=title_of(chosen[-1:], "$x^*$ at epochs of one run"),
        ylabel=LABELS["gamma"],
        curves=(*curves, whole),
        needs="a run",
        is_ordered=True,
    )


def _needs(factor: str) -> str:
    return f"runs that differ in the {SETTING_NAMES[factor]} only"
