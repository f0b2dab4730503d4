"""The command that compares optimizers."""

from pathlib import Path

from analyzers._reporting import FigureFiles, say
from analyzers.no_wrong_turns.page import SMALL_PNG
from analyzers.no_wrong_turns.runs import describe, find_runs
from analyzers.optimizer_page.page import write_page


def optimizers(*, stores: Path, out: Path, files: FigureFiles = SMALL_PNG) -> None:
    """Compare optimizers by geometry, conditions and sharpness, and test statements.

    Writes optimizers.md with tables and a figure. Alpha-beta pairs need losses at the end
    of each run: record with --record-samples, then run traj-train replay.

    Parameters
    ----------
    stores : Path
        Directory that contains the runs, at any depth.
    out : Path
        Directory for the page and its figure, such as docs.
    files : FigureFiles
        Format and resolution of the figure.
    """
    runs = find_runs(stores)
    page = write_page(runs, out, files=files)
    say(f"From {describe(runs)}.\nPage: {page}")
