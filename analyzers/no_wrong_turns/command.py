"""Sub-commands that draw the paper's figures from a directory of runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from analyzers._reporting import save_figure, say
from analyzers.no_wrong_turns.curves import EpochSelection
from analyzers.no_wrong_turns.figures import FIGURES, draw_figure
from analyzers.no_wrong_turns.page import write_page
from analyzers.no_wrong_turns.runs import describe, find_runs

# A type checker knows no literal of computed strings.
if TYPE_CHECKING:
    FigureName = str
else:
    FigureName = Literal[tuple(FIGURES)]


def figure(
    number: Positional[FigureName],
    *,
    stores: Path,
    out: Path | None = None,
    keep_final: bool = False,
    until: int | None = None,
) -> None:
    """Draw a figure of "No Wrong Turns" from recorded runs.

    Chooses the runs that the figure needs by how they were trained, analyses those without
    results, and writes figure-NUMBER.png.

    Parameters
    ----------
    number : str
        Number of the figure in the arXiv version; controls, measurements and theory are
        not in the paper.
    stores : Path
        Directory with the runs, at any depth.
    out : Path, optional
        Directory to write to. Default: the directory of the runs.
    keep_final : bool, default: False
        Also show the final epoch, in which x* and the path are not independent.
    until : int, optional
        Last epoch to show; the paper shows ImageNet until 155.
    """
    runs = find_runs(stores)
    epochs = EpochSelection(keep_final=keep_final, until=until)
    drawn = draw_figure(number, runs, epochs=epochs)
    directory = stores if out is None else out
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"figure-{number}.png"
    save_figure(drawn, path)
    say(f"From {describe(runs)}.\nFigure: {path}")


def paper(
    *,
    stores: Path,
    out: Path,
    keep_final: bool = False,
    until: int | None = None,
) -> None:
    """Draw the figures of "No Wrong Turns" for which there are runs; test its statements.

    Writes paper.md, with every figure followed by the paper's statements and whether these
    runs support them.

    Parameters
    ----------
    stores : Path
        Directory with the runs, at any depth.
    out : Path
        Directory to write to, such as docs.
    keep_final : bool, default: False
        Also show the final epoch, in which x* and the path are not independent.
    until : int, optional
        Last epoch to show; the paper shows ImageNet until 155.
    """
    runs = find_runs(stores)
    epochs = EpochSelection(keep_final=keep_final, until=until)
    page = write_page(runs, out, epochs=epochs)
    say(f"From {describe(runs)}.\nPage: {page}")
