"""The curves of a run in the page: by epoch with errors, and by step in buckets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers.explorer.contents.decimation import (
    Buckets,
    buckets,
    extremes,
    means_of_groups,
    root_mean_squares,
)
from analyzers.explorer.contents.shown_run import ShownRun
from analyzers.explorer.contents.stored_geometries import StoredGeometry, read_geometry
from analyzers.geometry.epoch_means import epoch_means
from analyzers.geometry.mid_run import AVERAGED, mean_of, median_of, middle_half
from analyzers.geometry.null import random_walk_gamma

QUANTITIES: Final = ("gamma", "rsi", "eb", "lolr", "distance")

STEP_COLUMNS: Final = 1 + 3 * len(QUANTITIES)
"""Largest number of columns by step."""

MAX_EPOCHS: Final = 1500
"""Largest number of points of a curve by epoch; longer runs are averaged over several epochs."""

Floats = npt.NDArray[np.floating[Any]]
Columns = dict[str, Any]
"""Columns of curves, arrays by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometryCurves:
    """The geometry of a run relative to one target.

    Attributes
    ----------
    label, note : str
        Name and description of the target.
    by_epoch : dict from str to numpy.ndarray
        Columns (epoch,): ``epoch``, the place ``x`` of the middle of the epoch, and for each
        quantity q the mean ``q``, its standard error ``q_stderr``, and the extremes ``q_min``
        and ``q_max`` of single steps.
    by_step : dict from str to numpy.ndarray
        Columns (bucket,): the place ``x`` of the first step, ``q_min``, if buckets have several
        steps ``q_max``, and the standard error ``q_stderr`` of a step, root mean square.
    """

    label: str
    note: str
    by_epoch: Columns
    by_step: Columns


def geometry_curves(
    shown: ShownRun, stored: StoredGeometry, *, most: int
) -> GeometryCurves | None:
    """Read the curves of a stored geometry, with at most `most` buckets of steps."""
    geometry = read_geometry(shown.run, stored.group)
    if geometry is None:
        return None
    geometry = geometry.assign_coords(epoch=("step", shown.epoch))
    means = epoch_means(geometry).compute()
    by_epoch: Columns = {"epoch": means["epoch"].values.astype(float)}
    for name in QUANTITIES:
        for suffix in ("", "_stderr", "_min", "_max"):
            by_epoch[f"{name}{suffix}"] = means[f"{name}{suffix}"].values
    counts = means["n_steps"].values
    groups = buckets(shown.run.n_steps, most)
    by_step = bucketed(
        {name: geometry[name].values for name in QUANTITIES}, shown.position, groups
    )
    for name in QUANTITIES:
        stderr = geometry[f"{name}_stderr"].values
        by_step[f"{name}_stderr"] = root_mean_squares(stderr, groups)
    return GeometryCurves(
        label=stored.reference,
        note=stored.note,
        by_epoch=_merged(by_epoch, counts),
        by_step=by_step,
    )


def bucketed(
    values: Mapping[str, Floats], position: Floats, groups: Buckets
) -> Columns:
    """Return the columns by bucket of several quantities, float32."""
    columns: Columns = {"x": position[groups.starts]}
    for name, series in values.items():
        low, high = extremes(series, groups)
        columns[f"{name}_min"] = low
        if groups.size > 1:
            columns[f"{name}_max"] = high
    return {name: column.astype(np.float32) for name, column in columns.items()}


def scalar_curves(
    shown: ShownRun, *, most: int
) -> tuple[Columns, Columns, Mapping[str, Floats]]:
    """Return the curves of recorded scalars by epoch and by bucket, and their values by step."""
    steps = shown.run.steps
    names = [n for n in ("loss", "lr", "grad_norm", "update_norm") if n in steps]
    values = {name: steps[name].values for name in names}
    labels, groups = shown.epoch, buckets(shown.run.n_steps, most)
    by_epoch: Columns = {"epoch": np.unique(labels).astype(float)}
    for name in names:
        by_epoch[name] = means_of_groups(values[name], labels)
    if "loss" in values:
        low, high = _extremes_of_epochs(values["loss"], labels)
        by_epoch |= {"loss_min": low, "loss_max": high}
    for name in ("val_loss", "test_loss"):
        if name in steps and "validation" not in by_epoch:
            by_epoch["validation"] = means_of_groups(steps[name].values, labels)
    counts = np.bincount(labels)[np.unique(labels)]
    loss: Columns = {name: values[name] for name in ("loss", "lr") if name in values}
    by_step = bucketed(loss, shown.position, groups)
    return _merged(by_epoch, counts), by_step, values


def null_curve(shown: ShownRun) -> Columns | None:
    """Return gamma of a random walk by epoch: the mean, and its range over the steps."""
    if "update_norm" not in shown.run.steps:
        return None
    gamma = random_walk_gamma(shown.run).values
    labels = shown.epoch
    low, high = _extremes_of_epochs(gamma, labels)
    columns: Columns = {
        "epoch": np.unique(labels).astype(float),
        "gamma": means_of_groups(gamma, labels),
        "gamma_min": low,
        "gamma_max": high,
    }
    return _merged(columns, np.bincount(labels)[np.unique(labels)])


def _extremes_of_epochs(
    values: Floats, labels: npt.NDArray[Any]
) -> tuple[Floats, Floats]:
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    return np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)


def _merged(columns: Columns, counts: npt.NDArray[Any]) -> Columns:
    """Average over neighbouring epochs if there are too many, and add the place ``x``."""
    n = len(columns["epoch"])
    size = max(1, -(-n // MAX_EPOCHS))
    if size == 1:
        return columns | {"x": columns["epoch"] + 0.5}
    starts = np.arange(0, n, size)
    weights = counts.astype(float)
    total = np.add.reduceat(weights, starts)
    merged: Columns = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, values in columns.items():
            if name.endswith("_min"):
                merged[name] = np.fmin.reduceat(values, starts)
            elif name.endswith("_max"):
                merged[name] = np.fmax.reduceat(values, starts)
            elif name.endswith("_stderr"):
                # Errors of different epochs are taken as independent.
                sums = np.add.reduceat((weights * values) ** 2, starts)
                merged[name] = np.sqrt(sums) / total
            elif name == "epoch":
                merged[name] = values[starts]
            else:
                merged[name] = np.add.reduceat(weights * values, starts) / total
    last = np.append(starts[1:], n) - 1
    middle = (columns["epoch"][starts] + columns["epoch"][last] + 1) / 2
    return merged | {"x": middle}


def mid_run(curves: xr.Dataset | Columns, name: str) -> tuple[float, float]:
    """Return the number of `analyzers.mid_run` for a quantity, and its standard error."""
    half = middle_half(len(curves[name]))
    columns = (np.asarray(curves[key])[half] for key in (name, f"{name}_stderr"))
    value, stderr = (mean_of if name in AVERAGED else median_of)(*columns)
    return float(value), float(stderr)
