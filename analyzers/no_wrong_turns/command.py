"""Sub-commands that draw the paper's figures from a directory of runs."""

from pathlib import Path
from typing import Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
from tyro.conf import Positional

from analyzers._reporting import say
from analyzers.no_wrong_turns.curves import Shown
from analyzers.no_wrong_turns.figures import draw_figure
from analyzers.no_wrong_turns.page import write_page
from analyzers.no_wrong_turns.runs import describe, find_runs

Number = Literal[
    "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "controls"
]  # fmt: skip
"""The keys of `analyzers.no_wrong_turns.figures.FIGURES`."""


def figure(
    number: Positional[Number],
    *,
    stores: Path,
    out: Path | None = None,
    keep_final: bool = False,
    until: int | None = None,
) -> None:
    """Draw a figure of "No Wrong Turns" from recorded runs.

    Chooses the runs that the figure needs by how they were trained, analyses those that
    were not yet, and writes figure-NUMBER.png.

    Parameters
    ----------
    number : str
        Number of the figure in the arXiv version; "controls" for those that the paper
        has not.
    stores : Path
        Directory with the runs; they may lie in directories below it.
    out : Path, optional
        Directory to write to. Default: that of the runs.
    keep_final : bool, default: False
        Show the final epoch, too, in which x* and the path are not independent.
    until : int, optional
        Last epoch to show; the paper shows ImageNet until 155.
    """
    mpl.use("agg")
    runs = find_runs(stores)
    shown = Shown(keep_final=keep_final, until=until)
    drawn = draw_figure(number, runs, shown=shown)
    directory = stores if out is None else out
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"figure-{number}.png"
    drawn.savefig(path, dpi=150)
    plt.close(drawn)
    say(f"From {describe(runs)}.\nFigure: {path}")


def paper(
    *,
    stores: Path,
    out: Path,
    keep_final: bool = False,
    until: int | None = None,
) -> None:
    """Draw all figures of "No Wrong Turns" that can be, and test its statements.

    Writes paper.md, with every figure beside what the paper states and whether it is seen
    in these runs.

    Parameters
    ----------
    stores : Path
        Directory with the runs; they may lie in directories below it.
    out : Path
        Directory to write to, such as docs.
    keep_final : bool, default: False
        Show the final epoch, too, in which x* and the path are not independent.
    until : int, optional
        Last epoch to show; the paper shows ImageNet until 155.
    """
    mpl.use("agg")
    runs = find_runs(stores)
    page = write_page(runs, out, shown=Shown(keep_final=keep_final, until=until))
    say(f"From {describe(runs)}.\nPage: {page}")
