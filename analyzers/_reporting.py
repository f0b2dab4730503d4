"""Print the report of a command and save its figures."""

import math
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    TypeAlias,
)

import tyro
from rich.table import Table

from trajstore import reading, store
from trajstore.cli.console import make_console, print_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trajstore.reading.run import Run

MAX_ROWS: Final = 40
"""Largest number of table rows; a longer table shows every second, third, ... row."""

MAX_TEXT: Final = 40
"""Largest width of a text column, in characters; longer cells are folded."""

METADATA: Final = {"png": "Comment", "pdf": "Keywords", "svg": "Keywords"}
"""Metadata of a figure's file, by its format, that holds the key of the figure."""

PACKAGE: Final = Path(__file__).parent

DPI_RANGE: Final = (10, 600)
"""Smallest and largest resolution of figures; the tallest figure has 25,000 rows at 600."""

Drawn: TypeAlias = "Figure | Axes"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where results, tables and figures go.

    Parameters
    ----------
    format : {"png", "pdf", "svg"}, default: "png"
        Format of the figures.
    dpi : int, default: 150
        Resolution of the figures in dots per inch; in pdf and svg, of images within them.
    out : Path, optional
        Directory for the figures, created if necessary. Default: RUN.figures.
    json : bool, default: False
        Print one JSON document instead of tables: what was computed, and where it lies.
    """

    format: Literal["png", "pdf", "svg"] = "png"
    dpi: int = 150
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = (
        None
    )
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False

    def __post_init__(self) -> None:
        """Check the resolution."""
        _ = self.files

    @property
    def files(self) -> FigureFiles:
        """Format and resolution of the figures."""
        return FigureFiles(format=self.format, dpi=self.dpi)


TERMINAL: Final = Output()


class Opened(NamedTuple):
    """A group of results, the variable that printed code assigns it to, and a use of that."""

    group: str
    name: str
    example: str


def report(
    run: "Run",
    *parts: Table | str,
    data: "xr.Dataset",
    figures: "Mapping[str, Callable[[], Drawn]]",
    drawn_from: "Sequence[xr.Dataset]" = (),
    groups: Sequence[str],
    name: str,
    example: str,
    more: Sequence[Opened] = (),
    also: "Mapping[str, xr.Dataset] | None" = None,
    output: Output = TERMINAL,
) -> None:
    """Print tables and notes, save figures, and say where the results of a run lie.

    Parameters
    ----------
    run : Run
        The analysed run; its results lie next to it.
    *parts : Table or str
        Tables and notes, printed in this order and separated by empty lines; empty notes
        are left out. Notes are wrapped, so they should not contain paths.
    data : xarray.Dataset
        The numbers that the tables show, for the JSON document.
    figures : mapping of str to callable
        Functions that draw the figures to save, by file name without the extension. A file
        that was drawn from the same data by the same code is kept.
    drawn_from : sequence of xarray.Dataset
        Datasets besides `data` that the figures show.
    groups : sequence of str
        Groups that hold the results. Python code that opens the first group is printed.
    name, example : str
        Variable that the printed code assigns, and an expression that uses it.
    more : sequence of Opened
        Further groups that the printed code opens.
    also : mapping of str to xarray.Dataset, optional
        Further numbers of the tables, which the JSON document holds under these names.
    output : Output
        Where results, tables and figures go.
    """
    if not output.json:
        console = make_console()
        for part in parts:
            if part:
                console.print(part)
                console.print()
    directory = figures_directory(run) if output.out is None else output.out
    directory.mkdir(parents=True, exist_ok=True)
    also = also or {}
    key = _figure_key(run, output.files, [data, *drawn_from, *also.values()])
    paths = []
    for file, draw in figures.items():
        path = store.inside(directory, f"{file}.{output.files.format}")
        if not (path.is_file() and key.encode() in path.read_bytes()):
            save_figure(draw(), path, dpi=output.files.dpi, key=key)
        paths.append(path)
    results = reading.results_location(run)
    if output.json:
        document = {
            "run": run.location,
            "results": results,
            "groups": list(groups),
            "figures": [str(path) for path in paths],
            "notes": [part for part in parts if isinstance(part, str) and part],
            **as_json(data),
            **{name: as_json(dataset) for name, dataset in also.items()},
        }
        print_json(document)
        return
    several = f"Figures: {directory}{os.sep}"
    say(f"Figure: {paths[0]}" if len(paths) == 1 else several)
    say(f"Results: {results}\nGroups: {', '.join(groups)}")
    _say_how_to_open(results, [Opened(groups[0], name, example), *more])


def _figure_key(run: "Run", files: FigureFiles, datasets: "list[xr.Dataset]") -> str:
    """Return a hash of everything that figures depend on."""
    newest = max(path.stat().st_mtime_ns for path in PACKAGE.rglob("*.py"))
    digest = sha256(repr((run.location, files, newest)).encode())
    for data in datasets:
        for name, variable in data.variables.items():
            values = variable.values
            is_text = values.dtype.kind in "OU"
            content = repr(values.tolist()).encode() if is_text else values.tobytes()
            digest.update(repr((name, values.shape, variable.attrs)).encode() + content)
        digest.update(repr(data.attrs).encode())
    return digest.hexdigest()


def as_json(data: "xr.Dataset") -> dict[str, Any]:
    """Return coordinates, variables and attributes of a dataset as JSON values."""

    def plain(value: Any) -> Any:
        """Return a value without NumPy's types; numbers that are not finite become None."""
        if hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value if isinstance(value, str | int | float | None) else str(value)

    def described(variables: Mapping[Any, "xr.DataArray"]) -> dict[str, Any]:
        return {
            str(name): {
                "dims": list(variable.dims),
                "values": plain(variable.values),
                "attrs": plain(variable.attrs),
            }
            for name, variable in variables.items()
        }

    return {
        "coords": described(data.coords),
        "variables": described(data.data_vars),
        "attrs": plain(data.attrs),
    }


def save_figure(
    drawn: "Drawn", path: Path, *, dpi: int = PNG.dpi, key: str = ""
) -> Path:
    """Save a figure, or the figure of the given axes, close it, and return the path."""
    # The key is kept in the metadata of the file.
    figure: Any = drawn if hasattr(drawn, "savefig") else drawn.figure
    # Another process may draw the same figure.
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    metadata = {METADATA[path.suffix.removeprefix(".")]: key} if key else None
    figure.savefig(partial, dpi=dpi, metadata=metadata)
    partial.replace(path)
    # The figure exists, so pyplot is imported.
    sys.modules["matplotlib.pyplot"].close(figure)
    return path


def figures_directory(run: "Run") -> Path:
    """Create the directory for the figures of a run, and return its path."""
    directory = _figures_path(run)
    directory.mkdir(exist_ok=True)
    return directory


def existing_figures(run: "Run") -> tuple[list[Path], list[Path]]:
    """Return the PNG figures and the pages of a run that have been written."""
    directory = _figures_path(run)
    figures, pages = (
        [store.inside(directory, path.name) for path in sorted(directory.glob(pattern))]
        for pattern in ("[!.]*.png", "[!.]*.html")
    )
    return figures, pages


def _figures_path(run: "Run") -> Path:
    # Figures of a remote run go to the working directory.
    directory = Path(store.sibling(run.location, ".figures"))
    if store.is_remote(run.location):
        directory = Path(store.name_of(store.sibling(run.location, ".figures")))
    # Nobody named this path, so a link there may lead anywhere.
    store.inside(directory.parent, directory.name)
    return directory


def say(text: str, *, stderr: bool = False) -> None:
    """Print text without wrapping it, so that paths in it can be copied."""
    make_console(stderr=stderr).print(text, soft_wrap=True)


def _say_how_to_open(results: str, opened: Sequence[Opened]) -> None:
    """Print Python code that opens groups of results, and uses them."""
    code = ["import xarray"]
    if any("analyzers." in each.example for each in opened):
        code.append("from trajstore import analyzers")
    if len(opened) == 1:
        [(group, name, example)] = opened
        call = f"{name} = xarray.open_zarr("
        code += [
            f"{call}{results!r}, group={group!r},",
            f"{' ' * len(call)}consolidated=False, chunks=None)",
            example,
        ]
    else:
        code.append(f"results = {results!r}")
        for group, name, _ in opened:
            code.append(
                f"{name} = xarray.open_zarr(results, group={group!r}, consolidated=False)"
            )
        code += [example for _, _, example in opened]
    say("Open the results with\n\n" + "\n".join(code))


def make_table(*headers: str, text: Collection[str] = ()) -> Table:
    """Return an empty table whose columns hold numbers, or text if named in `text`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        if header in text:
            table.add_column(header, overflow="fold", max_width=MAX_TEXT)
        else:
            table.add_column(header, justify="right", no_wrap=True)
    return table


def decimals_of(errors: "npt.NDArray[np.float64]") -> int:
    """Return the number of decimals, 4 to 6, that shows a digit of every error above 1e-6."""
    # Smaller errors are those of rounding.
    known = errors[errors > 1e-6]
    smallest = float(known.min()) if known.size else 1.0
    return max(4, math.ceil(-math.log10(smallest)))


SMALL_ERROR = 5e-5
"""Error below which it is written as a power of ten."""


def with_error(value: float, error: float, decimals: int) -> str:
    """Return a value and its error, which is never rounded to 0."""
    # All small errors of a column are written alike.
    is_small = 0 < error < max(0.5 * 10**-decimals, SMALL_ERROR)
    shown = f"{error:.0e}" if is_small else f"{error:.{decimals}f}"
    return f"{value:.{decimals}f} ±{'0' if error == 0 else shown}"


def value_and_error(value: float, error: float, *, sign: str = "") -> str:
    """Return a value with as many digits as its error allows, 2 to 4, and the error."""
    if math.isnan(value):
        return "unknown"
    digits = 3
    if error > 0 and value:
        digits = min(max(math.floor(math.log10(abs(value) / error)) + 2, 2), 4)
    shown = f"{value:{sign}.{digits}g}"
    return shown if math.isnan(error) else f"{shown} ±{error:.1g}"


def shown_rows(n: int, limit: int = MAX_ROWS) -> range:
    """Return the indices of evenly spaced rows out of n, at most `limit` of them."""
    return range(0, n, max(1, -(-n // limit)))


def spans(n_steps: int, limit: int = 20) -> list[slice]:
    """Divide steps into at most `limit` spans of equal length; the last span may be shorter."""
    rows = shown_rows(n_steps, limit)
    return [slice(i, min(i + rows.step, n_steps)) for i in rows]
