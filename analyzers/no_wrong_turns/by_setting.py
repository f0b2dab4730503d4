"""Figures that compare settings: one curve for each run of a sweep."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

import numpy as np

from analyzers._panels import Curve, Panel
from analyzers.geometry.plots import LABELS
from analyzers.no_wrong_turns.curves import Shown, curve, means_of
from analyzers.no_wrong_turns.runs import (
    data_sets,
    data_title,
    label,
    mlp_and_resnet,
    models,
    sweep,
    training,
)
from trajstore.reading.run import Run

Labelled = Sequence[tuple[str, Run]]

NAMES: Final = {
    "batch_size": "batch size",
    "optimizer": "optimizer",
    "seed": "seed",
    "epochs": "epoch budget",
}
"""Settings in words."""

ORDERED: Final = ("batch_size", "epochs")
"""Settings with an order."""


def gamma_by_setting(runs: Sequence[Run], shown: Shown) -> list[Panel]:
    """Figure 1: gamma by depth and width, batch size, optimizer, and data set."""
    return [
        _models(runs, shown, "gamma"),
        _sweep(runs, shown, "gamma", "batch_size"),
        _sweep(runs, shown, "gamma", "optimizer"),
        _panel(
            "data sets",
            [(data_title(run), run) for run in data_sets(runs)],
            shown,
            "gamma",
            needs="a run of a network",
        ),
    ]


def gamma_by_seed_and_budget(runs: Sequence[Run], shown: Shown) -> list[Panel]:
    """Figure 4: gamma by seed and by epoch budget, and by when x* is taken in one run."""
    return [
        _sweep(runs, shown, "gamma", "seed"),
        _sweep(runs, shown, "gamma", "epochs"),
        _budgets_from_one_run(runs, shown, "gamma"),
    ]


def gamma_by_batch_size(runs: Sequence[Run], shown: Shown) -> list[Panel]:
    """Figure 6: gamma by batch size, and over the square root of the batch size."""
    chosen = sweep(runs, "batch_size")
    curves = [
        curve(
            means_of(run, shown),
            "gamma",
            label=label(run, "batch_size", chosen),
            scale=1 / np.sqrt(training(run)["batch_size"]),
        )
        for run in chosen
    ]
    scaled = Panel(
        title=_title(chosen, "over its square root"),
        ylabel=r"$\gamma / \sqrt{B}$",
        curves=tuple(curves),
        needs=_needs("batch_size"),
        is_ordered=True,
    )
    return [_sweep(runs, shown, "gamma", "batch_size"), scaled]


def rsi_and_eb(
    panel: Callable[[Sequence[Run], Shown, str], Panel],
) -> Callable[[Sequence[Run], Shown], list[Panel]]:
    """Make a figure of two panels, RSI and EB.

    Parameters
    ----------
    panel : callable
        Takes runs, what is shown, and a quantity, and returns a panel.

    Returns
    -------
    callable
        Takes runs and what is shown, and returns panels.
    """

    def both(runs: Sequence[Run], shown: Shown) -> list[Panel]:
        return [panel(runs, shown, quantity) for quantity in ("rsi", "eb")]

    return both


def by(factor: str) -> Callable[[Sequence[Run], Shown, str], Panel]:
    """Return a function that makes the panel of a sweep."""
    return partial(_sweep, factor=factor)


def gamma_of_mlp_and_resnet(runs: Sequence[Run], shown: Shown) -> list[Panel]:
    """Figure 14: gamma of an MLP and of a ResNet on the same data."""
    pair = mlp_and_resnet(runs)
    return [
        _panel(
            _title(list(pair.values()), "model"),
            _by_workload(list(pair.values())),
            shown,
            "gamma",
            needs="an MLP and a ResNet on the same data",
        )
    ]


def _sweep(runs: Sequence[Run], shown: Shown, quantity: str, factor: str) -> Panel:
    chosen = sweep(runs, factor)
    return _panel(
        _title(chosen, NAMES[factor]),
        [(label(run, factor, chosen), run) for run in chosen],
        shown,
        quantity,
        needs=_needs(factor),
        is_ordered=factor in ORDERED,
    )


def _models(runs: Sequence[Run], shown: Shown, quantity: str) -> Panel:
    chosen = models(runs)
    return _panel(
        _title(chosen, "model"),
        _by_workload(chosen),
        shown,
        quantity,
        needs="two models on the same data",
    )


def _by_workload(chosen: Sequence[Run]) -> Labelled:
    """Label runs with their workload, and the optimizer where that differs."""
    optimizers = {training(run)["optimizer"] for run in chosen}
    ending = ", {optimizer}" if len(optimizers) > 1 else ""
    return [
        (training(run)["workload"] + ending.format(**training(run)), run)
        for run in chosen
    ]


def _budgets_from_one_run(runs: Sequence[Run], shown: Shown, quantity: str) -> Panel:
    """Take x* where the shorter runs ended, or at a half and three quarters."""
    chosen = sweep(runs, "epochs") or data_sets(runs)[:1]
    if not chosen:
        return _panel("x* within one run", [], shown, quantity, needs="a run")
    longest = chosen[-1]
    n = longest.n_epochs
    ends = [run.n_epochs for run in chosen[:-1]] or [n // 2, 3 * n // 4]
    curves = [
        _within(longest, epoch, shown, quantity)
        for epoch in sorted(set(ends) & set(longest.stored.epoch_windows) - {0})
    ]
    whole = curve(means_of(longest, shown), quantity, label=f"{n}, the end")
    return Panel(
        title=_title([longest], "$x^*$ at epochs of one run"),
        ylabel=LABELS[quantity],
        curves=(*curves, whole),
        needs="a run",
        is_ordered=True,
    )


def _within(run: Run, epoch: int, shown: Shown, quantity: str) -> Curve:
    means = means_of(run, shown, reference=epoch)
    return curve(means, quantity, label=str(epoch))


def _panel(
    title: str,
    chosen: Labelled,
    shown: Shown,
    quantity: str,
    *,
    needs: str,
    is_ordered: bool = False,
) -> Panel:
    curves = [curve(means_of(run, shown), quantity, label=name) for name, run in chosen]
    return Panel(
        title=title,
        ylabel=LABELS[quantity],
        curves=tuple(curves),
        needs=needs,
        is_ordered=is_ordered,
    )


def _title(chosen: Iterable[Run], what: str) -> str:
    """Name what differs and the data set, once."""
    names = sorted({data_title(run) for run in chosen})
    return f"{', '.join(names)}: {what}" if names else what


def _needs(factor: str) -> str:
    return f"runs that differ in the {NAMES[factor]} only"


rsi_and_eb_by_model = rsi_and_eb(_models)
rsi_and_eb_by_batch_size = rsi_and_eb(by("batch_size"))
rsi_and_eb_by_optimizer = rsi_and_eb(by("optimizer"))
rsi_and_eb_by_seed = rsi_and_eb(by("seed"))
rsi_and_eb_by_budget = rsi_and_eb(by("epochs"))
