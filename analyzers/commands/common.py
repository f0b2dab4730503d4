"""What sub-commands share: references as text, places for figures, and what is printed."""

import re
from pathlib import Path

from rich.console import Console

from analyzers.average_of_epochs import average_of_epochs
from analyzers.results import results_location
from trajstore import reference_point
from trajstore.location import is_remote, name_of, sibling
from trajstore.reader import Run
from trajstore.reference_point import Reference


def figures_directory(run: Run) -> Path:
    """Make the directory for figures: beside the run, or here if it is remote."""
    directory = Path(sibling(run.location, ".figures"))
    if is_remote(run.location):
        directory = Path(name_of(sibling(run.location, ".figures")))
    directory.mkdir(exist_ok=True)
    return directory


def say(text: str) -> None:
    """Print text in which paths are to be found as they are."""
    Console(markup=False, emoji=False, highlight=False).print(text, soft_wrap=True)


def say_how_to_open(run: Run, group: str, name: str, example: str) -> None:
    """Print the lines of Python that open results.

    Parameters
    ----------
    run : Run
        Beside which the results lie.
    group : str
        Their group.
    name : str
        Of the variable that is to hold them.
    example : str
        What may be asked of it.
    """
    call = f"{name} = xarray.open_zarr("
    say(
        f"Open them with\n\nimport xarray\n{call}{results_location(run)!r}, group={group!r},"
    )
    say(f"{' ' * len(call)}consolidated=False, chunks=None)\n{example}")


def spans(n_steps: int, most: int = 20) -> list[slice]:
    """Cut steps into spans of equal length, the last one shorter, for the rows of a table."""
    size = max(1, -(-n_steps // most))
    return [slice(i, min(i + size, n_steps)) for i in range(0, n_steps, size)]


def read_reference(text: str, run: Run) -> Reference:
    """Read a reference from the command line; names of snapshots come first."""
    if text.startswith("mean:") and text not in run.snapshots:
        return average_of_epochs(run, _epochs(text))
    return reference_point.read_reference(text, run)


def _epochs(text: str) -> range:
    """Read the epochs of ``mean:10:20``, both ends included."""
    found = re.fullmatch(r"mean:(\d+):(\d+)", text)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError(
            f"The reference {text!r} is no mean of epochs; write mean:10:20 for that of "
            "epochs 10 to 20."
        )
    return range(int(found[1]), int(found[2]) + 1)
