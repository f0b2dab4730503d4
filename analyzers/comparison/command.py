"""Sub-command that compares several runs."""

from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from tyro.conf import Positional

import analyzers
import trajstore
from analyzers import _execution, comparison, geometry
from analyzers._reporting import (
    TERMINAL,
    Drawn,
    Output,
    decimals_of,
    make_table,
    report,
    with_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr

    from trajstore.reading.run import Run

GROUP = "compare"
"""Name of the group and of the figure of a comparison."""

RUNS_PER_TABLE = 5
"""Number of columns of values that fit into 80 characters."""

MAX_VALUE = 24
"""Longest value of a setting in a table, in characters."""


def compare(
    stores: Positional[tuple[str, ...]],
    *,
    reference: str = "final",
    output: Output = TERMINAL,
) -> None:
    """Compare the geometry of several runs, with the settings in which they differ.

    Prints the settings that differ, means over the middle of every run, their differences from
    the first run and, for runs of one architecture, the distances of their last iterates.
    Results go to RUN.analysis.zarr next to each store, and figures to RUN.figures next to the
    first store.

    Parameters
    ----------
    stores : tuple of str
        Paths or URLs of trajectory stores, two or more.
    reference : str, default: "final"
        The target of every run: final, the name of a snapshot, the number of an epoch,
        step:4500, mean:10:20, or the path or URL of another store, for its final iterate.
    output : Output
        Where results, tables and figures go.

    Raises
    ------
    ValueError
        If there are fewer than two stores.
    """
    if len(stores) < 2:
        raise ValueError(
            f"A comparison needs two stores or more, got {len(stores)}; "
            "traj-analyze geometry measures a single run."
        )
    runs = [trajstore.open_run(store) for store in stores]
    # A run that diverged is compared, too; `store_geometry` warns of its target.
    targets = [geometry.read_reference(reference, run, is_finite=False) for run in runs]
    geometries = [
        analyzers.store_geometry(run, reference=target)
        for run, target in zip(runs, targets, strict=True)
    ]
    compared = _execution.store_result(
        runs[0], GROUP, comparison.compare_geometries(runs, geometries)
    )
    figures: dict[str, Callable[[], Drawn]] = {
        GROUP: lambda: analyzers.plots.compare(compared)
    }
    shown = [compared]
    parts: list[Table | str] = [_run_table(runs, compared), *_setting_tables(compared)]
    middle = comparison.mid_run(compared)
    parts += [
        "Means without the first and the last epoch of each run:",
        _middle_table(middle),
        "Differences from run 1 in these epochs:",
        _difference_table(middle),
    ]
    if all(run.layout == runs[0].layout for run in runs):
        path = analyzers.path_pca(runs, components=2).load()
        shown.append(path)
        figures[f"{GROUP}-paths"] = lambda: analyzers.plots.path_pca(path)
        parts += ["Distances of the last stored iterates:", *_distance_tables(runs)]
    report(
        runs[0],
        *parts,
        data=compared,
        drawn_from=shown,
        figures=figures,
        output=output,
        groups=[GROUP],
        name="compared",
        example="compared.gamma_difference.values",
    )


def _run_table(runs: "list[Run]", compared: "xr.Dataset") -> Table:
    table = make_table(
        "", "run", "steps", "epochs", "parameters", "status", text=["run", "status"]
    )
    for i, run in enumerate(runs):
        table.add_row(
            str(i + 1),
            str(compared["run"].values[i]),
            f"{run.n_steps:,}",
            f"{run.n_epochs:,}",
            f"{run.layout.n_params:,}",
            run.status,
        )
    return table


def _setting_tables(compared: "xr.Dataset") -> list[Table]:
    """Return the settings that differ, with a column per run; the first table names the runs."""
    listed = {"steps", "epochs", "parameters", "status"}
    names = [
        str(name)
        for name, values in compared.coords.items()
        if values.dims == ("run",) and name != "run" and name not in listed
    ]
    tables = []
    n = compared.sizes["run"]
    for first in range(0, n if names else 0, RUNS_PER_TABLE):
        columns = range(first, min(first + RUNS_PER_TABLE, n))
        numbers = [str(i + 1) for i in columns]
        table = make_table("setting", *numbers, text=["setting", *numbers])
        for name in names:
            values = compared[name].values
            shown = [_value(values[i]) for i in columns]
            if name.endswith(".class"):
                shown = [text.rpartition(".")[2] for text in shown]
            table.add_row(name.removesuffix("_setting"), *shown)
        tables.append(table)
    return tables


def _value(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."


def _middle_table(middle: "xr.Dataset") -> Table:
    metrics = [name for name in ("loss", "lr") if name in middle]
    table = make_table("", "gamma", "RSI", "EB", "loLR", "distance", *metrics)
    decimals = decimals_of(middle["gamma_stderr"].values)
    for i in range(middle.sizes["run"]):
        of_run = {str(k): v.item() for k, v in middle.isel(run=i).items()}
        table.add_row(
            str(i + 1),
            with_error(of_run["gamma"], of_run["gamma_stderr"], decimals),
            *[f"{of_run[name]:.3g}" for name in ("rsi", "eb", "lolr", "distance")],
            *[f"{of_run[name]:.3g}" for name in metrics],
        )
    return table


def _difference_table(middle: "xr.Dataset") -> Table:
    table = make_table("", "gamma", "RSI", "EB", "loLR", "distance")
    for i in range(1, middle.sizes["run"]):
        of_run = {str(k): v.item() for k, v in middle.isel(run=i).items()}
        table.add_row(
            str(i + 1),
            *[
                f"{of_run[f'{name}_difference']:+.2g} ±{of_run[f'{name}_difference_stderr']:.1g}"
                for name in ("gamma", "rsi", "eb", "lolr", "distance")
            ],
        )
    return table


def _distance_tables(runs: "list[Run]") -> list[Table]:
    """Return the distances of the last stored iterates of all pairs of runs."""
    apart = analyzers.path_distances(runs).load()
    last = [
        int(np.flatnonzero(apart["run"].values == name)[-1])
        for name in dict.fromkeys(apart["run"].values.tolist())
    ]
    tables = []
    for first in range(0, len(last), RUNS_PER_TABLE):
        columns = last[first : first + RUNS_PER_TABLE]
        table = make_table("", *[str(first + j + 1) for j in range(len(columns))])
        for i, row in enumerate(last):
            table.add_row(
                str(i + 1),
                *[f"{float(apart['distance'][row, c]):.4g}" for c in columns],
            )
        tables.append(table)
    return tables
