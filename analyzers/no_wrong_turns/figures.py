"""Table of figures: the paper's figures by number, and our own by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from matplotlib.figure import Figure

from analyzers._panels import Panel, draw_panels
from analyzers.no_wrong_turns.by_setting import (
    gamma_by_batch_size,
    gamma_by_seed_and_budget,
    gamma_by_setting,
    gamma_of_mlp_and_resnet,
    rsi_and_eb_by,
    rsi_and_eb_by_model,
)
from analyzers.no_wrong_turns.controls import gamma_of_controls
from analyzers.no_wrong_turns.curves import (
    AS_PUBLISHED,
    NEEDS_NETWORK,
    EpochSelection,
)
from analyzers.no_wrong_turns.measurements import other_measurements, theory_and_data
from analyzers.no_wrong_turns.runs import TrainedRun, describe
from analyzers.no_wrong_turns.single_runs import (
    counter_examples,
    distance_of_single_runs,
    distance_travelled_by_optimizer,
    lolr_and_schedule,
    quantities_of_single_runs,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperFigure:
    """Definition of a figure."""

    title: str
    panels: Callable[[Sequence[TrainedRun], EpochSelection], list[Panel]]
    needs: str
    n_columns: int = 2
    note: str = ""  # differences from the paper's figure, for the page


ABLATION_NOTE: Final = (
    "The paper's figures 7 to 11 show RSI and EB of its comparisons. We do not know which "
    "figure shows which comparison; the order here is ours."
)

FIGURES: Final = {
    "1": PaperFigure(
        title="gamma by model, batch size, optimizer and data set",
        panels=gamma_by_setting,
        needs=NEEDS_NETWORK,
        note="We do not know the content of the paper's fourth panel; its text mentions "
        "four data sets.",
    ),
    "2": PaperFigure(
        title="gamma, RSI and EB of single runs",
        panels=quantities_of_single_runs,
        needs=NEEDS_NETWORK,
        n_columns=3,
    ),
    "3": PaperFigure(
        title="locally optimal learning rate and the rate used",
        panels=lolr_and_schedule,
        needs=NEEDS_NETWORK,
    ),
    "4": PaperFigure(
        title="gamma by seed and by epoch budget",
        panels=gamma_by_seed_and_budget,
        needs=NEEDS_NETWORK,
        n_columns=3,
        note="The last panel is ours: instead of runs with several budgets, it shows one run "
        "with x* taken at several epochs.",
    ),
    "5": PaperFigure(
        title="counter-examples: asymmetric linear model and sinusoidal mixture",
        panels=counter_examples,
        needs="a run of alm or sm",
        n_columns=3,
        note="We do not know the constants of the two functions; ours follow the paper's "
        "description.",
    ),
    "6": PaperFigure(
        title="gamma by batch size",
        panels=gamma_by_batch_size,
        needs="runs that differ in the batch size only",
        note="The panel of scaled gamma is ours.",
    ),
    "7": PaperFigure(
        title="RSI and EB by model",
        panels=rsi_and_eb_by_model,
        needs="two models on the same data",
        note=ABLATION_NOTE,
    ),
    "8": PaperFigure(
        title="RSI and EB by batch size",
        panels=partial(rsi_and_eb_by, factor="batch_size"),
        needs="runs that differ in the batch size only",
        note=ABLATION_NOTE,
    ),
    "9": PaperFigure(
        title="RSI and EB by optimizer",
        panels=partial(rsi_and_eb_by, factor="optimizer"),
        needs="runs that differ in the optimizer only",
        note=ABLATION_NOTE,
    ),
    "10": PaperFigure(
        title="RSI and EB by seed",
        panels=partial(rsi_and_eb_by, factor="seed"),
        needs="runs that differ in the seed only",
        note=ABLATION_NOTE,
    ),
    "11": PaperFigure(
        title="RSI and EB by epoch budget",
        panels=partial(rsi_and_eb_by, factor="epochs"),
        needs="runs that differ in the epoch budget only",
        note=ABLATION_NOTE,
    ),
    "12": PaperFigure(
        title="distance travelled by optimizer",
        panels=distance_travelled_by_optimizer,
        needs="runs that differ in the optimizer only",
    ),
    "13": PaperFigure(
        title="distance to x* of single runs",
        panels=distance_of_single_runs,
        needs=NEEDS_NETWORK,
        n_columns=3,
    ),
    "14": PaperFigure(
        title="gamma of an MLP and a ResNet",
        panels=gamma_of_mlp_and_resnet,
        needs="an MLP and a ResNet on the same data",
        n_columns=1,
    ),
    "controls": PaperFigure(
        title="gamma of controls, of random walks, and relative to other points",
        panels=gamma_of_controls,
        needs=NEEDS_NETWORK,
        note="These controls are not in the paper; its reviewers asked for them. With momentum and "
        "Adam, updates are not parallel to gradients, so their gamma may lie below that of a "
        "walk; and where later gradients undo earlier ones, noise has a larger gamma than "
        "training. Neither is a wrong turn.",
    ),
    "measurements": PaperFigure(
        title="other gradients, updates, and gradients some steps apart",
        panels=other_measurements,
        needs="a run that was recorded with additional gradients, or with updates",
        note="The published code measures these quantities, but the paper does not show "
        "them. Where pairs of gradients or iterates are compared, bars show the error of a "
        "single pair, because the errors of fixed probes do not average out over pairs.",
    ),
    "theory": PaperFigure(
        title="decrease of the distance in a step, by theory and measured",
        panels=theory_and_data,
        needs="a run of plain SGD without weight decay",
        n_columns=1,
        note="Equations (4), (6) and (7) of the paper, for one run. If the smallest RSI is "
        "not positive, equation (7) is 0 and guarantees nothing.",
    ),
}
"""All figures, numbered as in the arXiv version."""


def panels_of(
    number: str, runs: Sequence[TrainedRun], *, epochs: EpochSelection
) -> list[Panel]:
    """Return the panels of a figure, or an empty list if no panel has a curve."""
    panels = FIGURES[number].panels(runs, epochs)
    return panels if any(panel.curves for panel in panels) else []


def draw_figure(
    number: str, runs: Sequence[TrainedRun], *, epochs: EpochSelection = AS_PUBLISHED
) -> Figure:
    """Draw a figure of the table; raise a ValueError if runs for it are missing."""
    panels = panels_of(number, runs, epochs=epochs)
    if not panels:
        raise ValueError(missing_runs(number, runs))
    return draw_panels(panels, n_columns=FIGURES[number].n_columns)


def missing_runs(number: str, runs: Sequence[TrainedRun]) -> str:
    """Return a sentence on the runs that a figure needs and the runs found."""
    name = f"Figure {number}" if number.isdecimal() else f"The figure of {number}"
    return f"{name} needs {FIGURES[number].needs}; found {describe(runs)}."
