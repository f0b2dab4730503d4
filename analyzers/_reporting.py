"""What sub-commands share: references as text, places for figures, and what is printed."""

from pathlib import Path

from rich.console import Console

from analyzers._execution.results import results_location
from trajstore.reading.run import Run
from trajstore.store.location import is_remote, name_of, sibling


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
