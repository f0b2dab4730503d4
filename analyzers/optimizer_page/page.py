"""Write the page that compares optimizers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib.pyplot as plt

from analyzers._panels import Curve, Panel, draw_panels
from analyzers._reporting import FigureFiles
from analyzers.geometry.plots import LABELS
from analyzers.no_wrong_turns.claims.verdict import Measured
from analyzers.no_wrong_turns.defaults import SMALL_PNG
from analyzers.no_wrong_turns.page import reduce_colors
from analyzers.no_wrong_turns.runs import TrainedRun, describe
from analyzers.optimizer_page.measure import (
    QUANTITIES,
    Compared,
    compare_optimizers,
    means_by_epoch,
)
from analyzers.optimizer_page.statements import findings

DRAWN: Final = ("gamma", "rsi", "eb", "distance")

PREAMBLE: Final = """\
# Why do some optimizers work better?

This page, including its numbers and verdicts, was made by `traj-analyze optimizers` from {runs}.
Data: {data}. Learning rates: {rates}.

Numbers are means over {seeds} seeds, and errors are standard errors: the larger of that of the
spread over seeds and that of the runs themselves. Geometry and sharpness belong to the middle half
of the epochs, and x\\* is the end of each run. A statement is **supported** if its numbers satisfy it
by two standard errors, **contradicted** if they miss it by as much, and **inconclusive** otherwise.
Statements are given in our words. Verdicts apply to these runs only.

| quantity | meaning |
|---|---|
| gamma | cosine of the gradient and x - x\\* |
| RSI, EB | gamma times EB; length of the gradient over the distance to x\\* |
| smallest alpha + beta | smallest pair for which the alpha-beta condition holds at every step; larger numbers mean a weaker condition; none if the steps of a seed rule out all pairs |
| sharpness / threshold | largest eigenvalue of the Hessian (preconditioned for Adam) over the threshold at which full-batch steps become unstable; unknown for optimizers without a known threshold |

![gamma, RSI, EB and distance of every optimizer](images/{image})

*Means over the steps of an epoch and over seeds; bands reach from the smallest to the largest seed.
The final epoch is left out.*
"""


def write_page(
    runs: Sequence[TrainedRun], out: Path, *, files: FigureFiles = SMALL_PNG
) -> tuple[Path, Compared]:
    """Write ``optimizers.md`` to `out`, and its figure to ``images``; return path and numbers."""
    compared = compare_optimizers(runs)
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    image = images / f"optimizers.{files.format}"
    figure = draw_panels(_panels(compared), n_columns=2)
    figure.savefig(image, dpi=files.dpi)
    plt.close(figure)
    if files.format == "png":
        reduce_colors(image)
    used = [run for of_optimizer in compared.runs.values() for run in of_optimizer]
    preamble = PREAMBLE.format(
        runs=describe(used),
        data=", ".join(sorted({run.title for run in used})),
        rates=", ".join(
            f"{name} {of_optimizer[0].settings['lr']:g}"
            for name, of_optimizer in compared.runs.items()
        ),
        seeds=" to ".join(
            str(n) for n in sorted({len(runs) for runs in compared.runs.values()})
        ),
        image=image.name,
    )
    page = out / "optimizers.md"
    page.write_text(
        "\n".join([preamble, *_table(compared), "", *_verdicts(compared), ""])
    )
    return page, compared


def _panels(compared: Compared) -> list[Panel]:
    """Return one panel for each quantity, with a curve for each optimizer."""
    panels = []
    for name in DRAWN:
        curves = []
        for optimizer, runs in compared.runs.items():
            means = means_by_epoch(runs, name)
            curves.append(
                Curve(
                    optimizer if name == DRAWN[0] else "",  # one legend for all panels
                    means["epoch"].values,
                    means["mean"].values,
                    low=means["low"].values,
                    high=means["high"].values,
                )
            )
        panels.append(
            Panel(
                title="",
                ylabel=LABELS[name],
                curves=tuple(curves),
                needs="runs of several optimizers",
                is_log=name in {"rsi", "eb"},
            )
        )
    return panels


def _table(compared: Compared) -> list[str]:
    """Return the table of numbers, with a column for each optimizer."""
    lines = [
        "| | " + " | ".join(compared.runs) + " |",
        "|---" * (len(compared.runs) + 1) + "|",
    ]
    for name, quantity in QUANTITIES.items():
        numbers = compared.numbers[name].values()
        lines.append(f"| {quantity.title} | " + " | ".join(map(_cell, numbers)) + " |")
    return lines


def _cell(number: Measured) -> str:
    """Return a number as a table shows it."""
    if math.isinf(number.value):
        return "none"
    return "unknown" if math.isnan(number.value) else str(number)


def _verdicts(compared: Compared) -> list[str]:
    """Return the table of statements."""
    lines = [
        "## Statements",
        "",
        "| statement | source | verdict | numbers |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {f.statement.text} | {f.statement.source} | **{f.verdict}** | {f.numbers} |"
        for f in findings(compared.numbers)
    ]
    return lines
