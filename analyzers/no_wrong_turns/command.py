"""Sub-commands that draw the paper's figures and test its statements on recorded runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from analyzers import no_wrong_turns
from analyzers._reporting import PNG, FigureFiles, save_figure, say
from analyzers.no_wrong_turns.defaults import FIGURE_NAMES, SMALL_PNG
from trajstore.cli.console import print_json

# A type checker does not accept a Literal of computed strings.
if TYPE_CHECKING:
    FigureName = str
else:
    FigureName = Literal[FIGURE_NAMES]


def figure(
    number: Positional[FigureName],
    *,
    stores: Path,
    out: Path | None = None,
    keep_final: bool = False,
    until: int | None = None,
    files: FigureFiles = PNG,
) -> None:
    """Draw a figure of "No Wrong Turns" from recorded runs.

    Chooses runs by their training settings, analyses the chosen runs that have no results
    yet, and writes figure-NUMBER.png, or a file of another format.

    Parameters
    ----------
    number : str
        Number of the figure in the arXiv version, or the name of a figure that is not in
        the paper: controls, measurements or theory.
    stores : Path
        Directory that contains the runs, at any depth.
    out : Path, optional
        Directory for the figure. Default: the directory of the runs.
    keep_final : bool, default: False
        Also show the final epoch, in which x* and the path are not independent.
    until : int, optional
        Last epoch to show. The paper shows ImageNet up to epoch 155.
    files : FigureFiles
        Format and resolution of the figures.
    """
    runs = no_wrong_turns.find_runs(stores)
    epochs = no_wrong_turns.EpochSelection(keep_final=keep_final, until=until)
    drawn = no_wrong_turns.draw_figure(number, runs, epochs=epochs)
    directory = stores if out is None else out
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"figure-{number}.{files.format}"
    save_figure(drawn, path, dpi=files.dpi)
    say(f"From {no_wrong_turns.describe(runs)}.\nFigure: {path}")


def paper(
    *,
    stores: Path,
    out: Path,
    keep_final: bool = False,
    until: int | None = None,
    files: FigureFiles = SMALL_PNG,
    json: bool = False,
) -> None:
    """Draw the figures of "No Wrong Turns" from recorded runs, and test its statements.

    Draws every figure for which there are runs. Writes paper.md, where each figure is
    followed by the paper's statements on it, each with a verdict: supported, contradicted
    or inconclusive. Runs are chosen by the settings that traj-train stores.

    Parameters
    ----------
    stores : Path
        Directory that contains the runs, at any depth.
    out : Path
        Directory for the page and its figures, such as docs.
    keep_final : bool, default: False
        Also show the final epoch, in which x* and the path are not independent.
    until : int, optional
        Last epoch to show. The paper shows ImageNet up to epoch 155.
    files : FigureFiles
        Format and resolution of the figures.
    json : bool, default: False
        Print one JSON document: the statements with their verdicts, and the page.
    """
    runs = no_wrong_turns.find_runs(stores)
    epochs = no_wrong_turns.EpochSelection(keep_final=keep_final, until=until)
    page, found = no_wrong_turns.write_page(runs, out, epochs=epochs, files=files)
    if json:
        statements = [finding._asdict() for finding in found]
        described = no_wrong_turns.describe(runs)
        print_json({"page": str(page), "runs": described, "statements": statements})
        return
    say(f"From {no_wrong_turns.describe(runs)}.\nPage: {page}")
