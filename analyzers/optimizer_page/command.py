"""The command that compares optimizers."""

from pathlib import Path

from analyzers import no_wrong_turns, optimizer_page
from analyzers._reporting import FigureFiles, say
from analyzers.no_wrong_turns.defaults import SMALL_PNG


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
    runs = no_wrong_turns.find_runs(stores)
    page = optimizer_page.write_page(runs, out, files=files)
    say(f"From {no_wrong_turns.describe(runs)}.\nPage: {page}")
