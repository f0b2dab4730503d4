"""Sub-command that compares several runs."""

from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from tyro.conf import Positional

import analyzers
import trajstore
from analyzers import _execution, comparison, geometry
from analyzers._reporting import (
    TERMINAL,
    Drawn,
    Opened,
    Output,
    make_table,
    report,
    value_and_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr

    from analyzers.comparison.grouping import Configuration
    from trajstore.reading.run import Run

GROUP = "compare"
SEEDS = "compare-over-seeds"
"""Names of the groups and of the figures of a comparison."""

MID_RUN = "mid-run (the middle half of the run; gamma is a mean, others are medians)"

COLUMNS_PER_TABLE = 5
"""Number of columns of settings that fit into 80 characters."""

WIDTH = 80
"""Largest width of a table of measured values, in characters."""

QUANTITIES = ("gamma", "rsi", "eb", "lolr", "distance")
TITLES = {"rsi": "RSI", "eb": "EB", "lolr": "loLR"}
"""Names of quantities in tables; other names are shown as they are."""

ONE_EPOCH = (
    "Next to runs with epochs, a run without epochs has no middle half, and its numbers are unknown. "
    "Compare it with runs without epochs, whose ranges of steps have one; or see traj-analyze "
    "geometry of each."
)
OF_RUNS = (
    "± of a run, and of a difference of runs, is the error of the recording alone. It does not say "
    "what another seed of the training would change."
)
MEANS_OF_SEEDS = (
    "± is the standard error over runs: their spread, or the error of the estimates if that is "
    "larger."
)
SEVERAL_SEEDS = f"{MEANS_OF_SEEDS} Intervals and verdicts follow Welch's t, which counts how few the runs are."
ONE_SEED = (
    "± is the error of the estimates. It does not say what another seed of the training would "
    "change, which is often far more: record several seeds of each configuration, and give all "
    "of them."
)

UNLIKE_OPTIMIZERS = (
    "The runs have different optimizers. Gamma has a null value of its own for each of them: "
    "compare gamma minus the walk through the same optimizer, with analyzers.excess_gamma. RSI "
    "and EB depend on the distance to x*, and loLR is about plain gradient steps."
)

MAX_VALUE = 24
"""Longest value of a setting in a table, in characters."""


def compare(
    stores: Positional[tuple[str, ...]],
    *,
    reference: str = "final",
    by: tuple[str, ...] | None = None,
    output: Output = TERMINAL,
) -> None:
    """Compare the geometry of several runs, with the settings in which they differ.

    Runs whose settings differ only in seeds form a configuration: the command prints the means
    of each configuration over its runs, with standard errors, and a verdict on every difference
    from the first one. Of single runs it prints summaries of the middle half of the epochs and
    their differences from the first run. Results go to RUN.analysis.zarr next to each store, and
    figures to RUN.figures next to the first store.

    Parameters
    ----------
    stores : tuple of str
        Paths or URLs of trajectory stores, two or more.
    reference : str, default: "final"
        The target of every run: final, the name of a snapshot, the number of an epoch,
        step:4500, mean:10:20, the path or URL of another store, for its final iterate, or a .npz,
        .pt or .pth file of tensors by name.
    by : tuple of str, optional
        Names of the settings that make a configuration, such as optimizer.class; other settings
        may differ within it. By default, all settings except seeds.
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
    found = comparison.configurations(runs, by)
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
    middle = comparison.mid_run(compared)
    more: list[Opened] = []
    also: dict[str, xr.Dataset] = {}
    parts: list[Table | str] = [_run_table(runs, compared)]
    numbers = [str(i + 1) for i in range(len(runs))]
    of_runs = _middle_tables(middle, numbers, ("loss", "lr"))
    apart: list[Table | str] = [
        "Differences from run 1:",
        *_difference_tables(middle, numbers[1:]),
    ]
    if any(len(configuration.runs) > 1 for configuration in found):
        averaged = _execution.store_result(
            runs[0], SEEDS, comparison.average_configurations(compared, found)
        )
        figures[SEEDS] = lambda: analyzers.plots.compare(averaged)
        also["configurations"] = averaged
        example = "averaged.gamma_difference_verdict.to_series()"
        more.append(Opened(SEEDS, "averaged", example))
        parts += [
            *_setting_tables(compared, found),
            f"Each run, {MID_RUN}:",
            *of_runs,
            *(apart if len(found) == 1 else []),
            OF_RUNS,
            *_configuration_parts(averaged),
        ]
    else:
        parts += [
            *_setting_tables(compared, found),
            f"{MID_RUN.capitalize()}:",
            *of_runs,
            *apart,
            ONE_SEED,
        ]
    if len(set(map(_optimizers, runs))) > 1:
        parts.append(UNLIKE_OPTIMIZERS)
    if len({run.n_epochs < 2 for run in runs}) > 1:
        parts.append(ONE_EPOCH)
    if all(run.layout == runs[0].layout for run in runs):
        path = analyzers.path_pca(runs, components=2).load()
        shown.append(path)
        figures[f"{GROUP}-paths"] = lambda: analyzers.plots.path_pca(path)
        parts += ["Distances of the last stored iterates:", *_distance_tables(runs)]
    report(
        runs[0],
        *parts,
        data=compared,
        also=also,
        drawn_from=shown,
        figures=figures,
        output=output,
        groups=[GROUP, *[each.group for each in more]],
        name="compared",
        example="compared.gamma_difference.values",
        more=more,
    )


def _optimizers(run: "Run") -> tuple[str, ...]:
    """Return the classes of the optimizers of a run."""
    return tuple(sorted({group.optimizer for group in run.stored.document.optimizer}))


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


def _setting_tables(
    compared: "xr.Dataset", found: "list[Configuration]"
) -> list[Table]:
    """Return the settings that differ, with a column per run, or per configuration."""
    # The columns of a configuration show its first run, without what differs between its runs.
    listed = {"steps", "epochs", "parameters", "status"}
    names = [
        str(name)
        for name, values in compared.coords.items()
        if values.dims == ("run",) and name != "run" and name not in listed
    ]
    several = any(len(configuration.runs) > 1 for configuration in found)
    if several:
        names = [name for name in names if _is_constant(compared[name].values, found)]
    tables = []
    columns = [configuration.runs[0] for configuration in found]
    if not several:
        columns = list(range(compared.sizes["run"]))
    for first in range(0, len(columns) if names else 0, COLUMNS_PER_TABLE):
        some = columns[first : first + COLUMNS_PER_TABLE]
        numbers = [
            found[first + j].name[:MAX_VALUE] if several else str(first + j + 1)
            for j in range(len(some))
        ]
        table = make_table("setting", *numbers, text=["setting", *numbers])
        for name in names:
            values = compared[name].values
            shown = [_value(values[i]) for i in some]
            if name.endswith(".class"):
                shown = [text.rpartition(".")[2] for text in shown]
            table.add_row(name.removesuffix("_setting"), *shown)
        tables.append(table)
    return tables


def _is_constant(values: "Any", found: "list[Configuration]") -> bool:
    """Return whether a setting is the same in all runs of each configuration."""
    return all(
        len({str(values[i]) for i in configuration.runs}) == 1
        for configuration in found
    )


def _value(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."


def _middle_tables(
    middle: "xr.Dataset", numbers: list[str], metrics: tuple[str, ...]
) -> list[Table]:
    """Return the summaries of all runs with errors, with a column per run."""
    rows = {
        TITLES.get(name, name): [
            value_and_error(float(value), float(error))
            for value, error in zip(
                middle[name].values, middle[f"{name}_stderr"].values, strict=True
            )
        ]
        for name in QUANTITIES
    }
    for name in metrics:
        if name in middle:
            rows[name] = [f"{float(value):.3g}" for value in middle[name].values]
    return _split(rows, numbers)


def _difference_tables(middle: "xr.Dataset", numbers: list[str]) -> list[Table]:
    """Return the differences from the first run, with a column per run."""
    rows = {
        TITLES.get(name, name): [
            value_and_error(float(value), float(error), sign="+")
            for value, error in zip(
                middle[f"{name}_difference"].values[1:],
                middle[f"{name}_difference_stderr"].values[1:],
                strict=True,
            )
        ]
        for name in QUANTITIES
    }
    return _split(rows, numbers)


def _split(rows: dict[str, list[str]], numbers: list[str]) -> list[Table]:
    """Return tables of at most `WIDTH` characters, with as many columns as fit."""
    widest = max(len(cell) for cells in (*rows.values(), numbers) for cell in cells)
    n = max(1, (WIDTH - max(map(len, rows))) // (widest + 2))
    tables = []
    for first in range(0, len(numbers), n):
        some = slice(first, first + n)
        table = make_table("", *numbers[some], text=[""])
        for name, cells in rows.items():
            table.add_row(name, *cells[some])
        tables.append(table)
    return tables


def _configuration_parts(averaged: "xr.Dataset") -> "list[Table | str]":
    """Return the means of configurations, and the differences from the first, in words."""
    names = [*QUANTITIES, *[name for name in ("loss",) if name in averaged]]
    labels = [str(name)[:MAX_VALUE] for name in averaged["configuration"].values]
    n_runs = averaged["n_runs"].max("epoch").values
    rows = {"runs": [str(n) for n in n_runs]}
    for name in names:
        means, errors = (averaged[f"{name}_mid_run{end}"] for end in ("", "_stderr"))
        rows[TITLES.get(name, name)] = [
            value_and_error(float(value), float(error))
            for value, error in zip(means.values, errors.values, strict=True)
        ]
    table = make_table(
        "", "configuration", "difference", "95 % interval", "verdict",
        text=["", "configuration", "verdict"],
    )  # fmt: skip
    for name in names:
        title = TITLES.get(name, name)
        for i in range(1, len(labels)):
            value, stderr, low, high = (
                float(averaged[f"{name}_difference{end}"][i])
                for end in ("", "_stderr", "_low", "_high")
            )
            interval = "" if isnan(low) else f"{low:+.3g} to {high:+.3g}"
            verdict = str(averaged[f"{name}_difference_verdict"].values[i])
            shown = value_and_error(value, stderr, sign="+")
            table.add_row(title, labels[i], shown, interval, verdict)
            title = ""
    means_of_runs = f"Means over the runs of each configuration, {MID_RUN}:"
    if len(labels) == 1:
        return [means_of_runs, *_split(rows, labels), MEANS_OF_SEEDS]
    notes = [SEVERAL_SEEDS]
    if (n_runs == 1).any():
        alone = ", ".join(
            label for label, n in zip(labels, n_runs, strict=True) if n == 1
        )
        notes.append(
            f"Of {alone} there is one run: its ± is the error of the estimates, and does not say "
            "what another seed would change."
        )
    return [
        means_of_runs,
        *_split(rows, labels),
        f"Differences from {labels[0]}:",
        table,
        " ".join(notes),
    ]


def _distance_tables(runs: "list[Run]") -> list[Table]:
    """Return the distances of the last stored iterates of all pairs of runs."""
    apart = analyzers.path_distances(runs).load()
    last = [
        int(np.flatnonzero(apart["run"].values == name)[-1])
        for name in dict.fromkeys(apart["run"].values.tolist())
    ]
    numbers = [str(i + 1) for i in range(len(last))]
    distance = apart["distance"].values
    rows = {
        number: [f"{distance[row, column]:.4g}" for column in last]
        for number, row in zip(numbers, last, strict=True)
    }
    return _split(rows, numbers)
