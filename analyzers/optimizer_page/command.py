"""The command that compares optimizers."""

from math import isfinite
from pathlib import Path

from analyzers import no_wrong_turns, optimizer_page
from analyzers._reporting import FigureFiles, say
from analyzers.no_wrong_turns.defaults import SMALL_PNG
from analyzers.optimizer_page.statements import findings
from trajstore.cli.console import print_json


def optimizers(
    *, stores: Path, out: Path, files: FigureFiles = SMALL_PNG, json: bool = False
) -> None:
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
    json : bool, default: False
        Print one JSON document: numbers with errors, the statements with their verdicts,
        and the page.
    """
    runs = no_wrong_turns.find_runs(stores)
    page, compared = optimizer_page.write_page(runs, out, files=files)
    if json:
        statements = [
            {
                "claim": found.statement.text,
                "source": found.statement.source,
                "verdict": found.verdict,
                "numbers": found.numbers,
            }
            for found in findings(compared.numbers)
        ]
        numbers = {
            quantity: {
                name: dict(zip(("value", "stderr"), map(_finite, number), strict=True))
                for name, number in of_quantity.items()
            }
            for quantity, of_quantity in compared.numbers.items()
        }
        document = {"page": str(page), "numbers": numbers, "statements": statements}
        print_json(document)
        return
    say(f"From {no_wrong_turns.describe(runs)}.\nPage: {page}")


def _finite(number: float) -> float | None:
    """Return a number, or None for those that JSON lacks."""
    return number if isfinite(number) else None
