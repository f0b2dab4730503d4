"""Print the report of a command and save its figures."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from trajstore.cli.console import make_console
from trajstore.reading.results import results_location
from trajstore.reading.run import Run
from trajstore.store.location import inside, is_remote, name_of, sibling

MAX_ROWS: Final = 40
"""Largest number of table rows; a longer table shows every second, third, ... row."""

MAX_TEXT: Final = 40
"""Largest width of a text column, in characters; longer cells are folded."""

DPI_RANGE: Final = (10, 600)
"""Smallest and largest resolution of figures; the tallest figure has 25,000 rows at 600."""

Drawn = Figure | Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureFiles:
    """Format and resolution of the figures that a command writes.

    Parameters
    ----------
    format : {"png", "pdf", "svg"}, default: "png"
        Format of the figures.
    dpi : int, default: 150
        Resolution of the figures in dots per inch; in pdf and svg, of images within them.
    """

    format: Literal["png", "pdf", "svg"] = "png"
    dpi: int = 150

    def __post_init__(self) -> None:
        """Check the resolution."""
        low, high = DPI_RANGE
        if not low <= self.dpi <= high:
            raise ValueError(f"--dpi must be from {low} to {high}, got {self.dpi}.")


PNG: Final = FigureFiles()


def report(
    run: Run,
    *parts: Table | str,
    figures: Mapping[str, Drawn],
    groups: Sequence[str],
    name: str,
    example: str,
    files: FigureFiles = PNG,
) -> None:
    """Print tables and notes, save figures, and say where the results of a run lie.

    Parameters
    ----------
    run : Run
        The analysed run; its results lie next to it.
    *parts : Table or str
        Tables and notes, printed in this order and separated by empty lines; empty notes
        are left out. Notes are wrapped, so they should not contain paths.
    figures : mapping of str to Figure or Axes
        Figures to save and close, by file name without the extension.
    groups : sequence of str
        Groups that hold the results. Python code that opens the first group is printed.
    name, example : str
        Variable that the printed code assigns, and an expression that uses it.
    files : FigureFiles
        Format and resolution of the figures.
    """
    console = make_console()
    for part in parts:
        if part:
            console.print(part)
            console.print()
    directory = figures_directory(run)
    paths = [
        save_figure(figure, inside(directory, f"{file}.{files.format}"), dpi=files.dpi)
        for file, figure in figures.items()
    ]
    several = f"Figures: {directory}{os.sep}"
    say(f"Figure: {paths[0]}" if len(paths) == 1 else several)
    say(f"Results: {results_location(run)}\nGroups: {', '.join(groups)}")
    _say_how_to_open(run, groups[0], name, example)


def save_figure(drawn: Drawn, path: Path, *, dpi: int = PNG.dpi) -> Path:
    """Save a figure, or the figure of the given axes, close it, and return the path."""
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    assert isinstance(figure, Figure)
    # Another process may draw the same figure.
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    figure.savefig(partial, dpi=dpi)
    partial.replace(path)
    plt.close(figure)
    return path


def figures_directory(run: Run) -> Path:
    """Create the directory for the figures of a run, and return its path."""
    # Figures of a remote run go to the working directory.
    directory = Path(sibling(run.location, ".figures"))
    if is_remote(run.location):
        directory = Path(name_of(sibling(run.location, ".figures")))
    # Nobody named this path, so a link there may lead anywhere.
    inside(directory.parent, directory.name).mkdir(exist_ok=True)
    return directory


def say(text: str, *, stderr: bool = False) -> None:
    """Print text without wrapping it, so that paths in it can be copied."""
    make_console(stderr=stderr).print(text, soft_wrap=True)


def _say_how_to_open(run: Run, group: str, name: str, example: str) -> None:
    """Print Python code that opens a group of results."""
    call = f"{name} = xarray.open_zarr("
    say(
        f"Open the first group with\n\nimport xarray\n{call}{results_location(run)!r}, group={group!r},"
    )
    say(f"{' ' * len(call)}consolidated=False, chunks=None)\n{example}")


def make_table(*headers: str, text: Collection[str] = ()) -> Table:
    """Return an empty table whose columns hold numbers, or text if named in `text`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        if header in text:
            table.add_column(header, overflow="fold", max_width=MAX_TEXT)
        else:
            table.add_column(header, justify="right", no_wrap=True)
    return table


def shown_rows(n: int, limit: int = MAX_ROWS) -> range:
    """Return the indices of evenly spaced rows out of n, at most `limit` of them."""
    return range(0, n, max(1, -(-n // limit)))


def spans(n_steps: int, limit: int = 20) -> list[slice]:
    """Divide steps into at most `limit` spans of equal length; the last span may be shorter."""
    rows = shown_rows(n_steps, limit)
    return [slice(i, min(i + rows.step, n_steps)) for i in rows]
