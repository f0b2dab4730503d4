"""Sweeps: lists of runs that TOML files describe."""

import tomllib
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from train.settings import Training
from train.workloads.known import KNOWN, check_width
from trajstore.cli.command_line import nearest

DIRECTORY = files("train") / "sweeps"


class PlannedRun(NamedTuple):
    """A run of a sweep."""

    name: str  # file name of the store, without its ending
    training: Training
    updates: bool  # whether updates are also recorded


class Sweep(NamedTuple):
    """A list of runs to record."""

    summary: str  # one line, for `traj-train list`
    runs: list[PlannedRun]  # in the order of recording


def sweep_names() -> list[str]:
    """Return the names of the sweeps in this package."""
    return sorted(path.name.removesuffix(".toml") for path in DIRECTORY.iterdir())


def load_sweep(name: str, **changes: Any) -> Sweep:
    """Read a sweep by its name or path, and apply changed settings to all its runs."""
    if name in sweep_names():
        text = (DIRECTORY / f"{name}.toml").read_text()
    elif Path(name).is_file():
        text = Path(name).read_text()
    else:
        raise ValueError(
            f"There is no sweep {name!r}{nearest(name, sweep_names())}. You can also pass "
            "the path of a TOML file."
        )
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name} is not valid TOML: {error}.") from error
    runs = list(_runs(document, name, changes))
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f"{name}: several runs have the same name.")
    return Sweep(document.get("summary", name), runs)


def _runs(
    document: dict[str, Any], name: str, changes: dict[str, Any]
) -> Iterator[PlannedRun]:
    """Yield the runs that a TOML document describes, with changed settings."""
    known = {field.name for field in fields(Training)} | {"updates"}
    tables = document.get("runs")
    if not isinstance(tables, list) or not tables:
        raise ValueError(f"{name}: expected tables [[runs]], got {tables!r}.")
    for run in tables:
        settings = dict(run)
        try:
            label, workload = settings.pop("name"), settings.pop("workload")
        except KeyError as error:
            raise ValueError(f"{name}: a run has no {error}: {run}.") from error
        if not isinstance(label, str) or Path(label).name != label:
            raise ValueError(
                f"{name}: expected the name of a file without its ending, got {label!r}."
            )
        if str(workload) not in KNOWN:
            hint = nearest(str(workload), KNOWN)
            raise ValueError(f"{name}: there is no workload {workload!r}{hint}.")
        if unknown := sorted(settings.keys() - known):
            raise ValueError(
                f"{name}: {label} has no setting {unknown[0]!r}{nearest(unknown[0], known)}."
            )
        updates = settings.pop("updates", False)
        if not isinstance(updates, bool):
            raise ValueError(
                f"{name}: {label}: updates: expected true or false, got {updates!r}."
            )
        try:
            training = replace(KNOWN[workload].settings, **(settings | changes))
            check_width(training)
        except ValueError as error:
            raise ValueError(f"{name}: {label}: {error}") from error
        yield PlannedRun(label, training, updates)
