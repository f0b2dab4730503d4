"""Conditions of a run that its store and its results answer without long computations."""

from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr

from analyzers.conditions.alpha_beta import feasible_set, smallest_beta
from analyzers.curvature.edge_of_stability import edge_of_stability
from analyzers.explorer.contents.decimation import buckets, extremes
from analyzers.explorer.contents.shown_run import ShownRun
from analyzers.explorer.contents.stored_geometries import read_geometry
from analyzers.geometry.losses import replayed
from analyzers.gradients.arrays.segments import running_median, step_kinds
from analyzers.gradients.defaults import THRESHOLD, WINDOW
from analyzers.gradients.zigzag import zigzag

MAX_POINTS: Final = 2000
"""Largest number of points of a curve of cosines."""

N_GRID: Final = 200
"""Number of values of alpha at which the boundary of the feasible pairs is drawn."""

Columns = dict[str, Any]
"""Columns of curves, arrays by name."""


class Conditions(NamedTuple):
    """What is known about the conditions of a run; None where a run lacks the values."""

    cosine: Columns | None  # x, median, low and high by bucket of steps
    kinds: (
        Columns | None
    )  # left, right and kind of segments: -1 zigzag, 0 neither, 1 smooth
    stability: Columns | None  # x, ratio and sharpness
    pairs: xr.Dataset | None  # the result of feasible_set, and its boundary


def conditions_of(shown: ShownRun) -> Conditions:
    """Collect what is known about the conditions of a run."""
    cosine, kinds = _zigzag(shown)
    return Conditions(cosine, kinds, _stability(shown), _pairs(shown))


def _zigzag(shown: ShownRun) -> tuple[Columns | None, Columns | None]:
    if shown.run.n_steps < 2:
        return None, None
    cosine = zigzag(shown.run)["cosine"].values
    median = running_median(cosine, WINDOW)
    groups = buckets(len(cosine), MAX_POINTS)
    low, high = extremes(cosine, groups)
    middle = median[np.minimum(groups.starts + groups.size // 2, len(median) - 1)]
    columns: Columns = {"x": shown.position[groups.starts]}
    columns |= {"median": middle, "low": low, "high": high}
    labels = step_kinds(middle if groups.size > 1 else median, THRESHOLD)
    starts = np.flatnonzero(np.diff(labels, prepend=labels[0] - 1))
    left = columns["x"][starts]
    kinds = {"left": left, "right": np.append(left[1:], shown.n_epochs)}
    return _float32(columns), {**_float32(kinds), "kind": labels[starts]}


def _float32(columns: Columns) -> Columns:
    return {name: np.asarray(column, np.float32) for name, column in columns.items()}


def _stability(shown: ShownRun) -> Columns | None:
    try:
        found = edge_of_stability(shown.run)
    except (KeyError, ValueError):
        return None
    if not found.sizes["step"]:
        return None
    rows = np.searchsorted(shown.run.stored.step_numbers, found["step"].values)
    columns = {"x": shown.position[rows]}
    columns |= {name: found[name].values for name in ("ratio", "sharpness")}
    return _float32(columns)


def _pairs(shown: ShownRun) -> xr.Dataset | None:
    """Return the feasible pairs of the last iterate, if its losses and geometry are stored."""
    run = shown.run
    if "loss" not in run.metrics or not run.has_final:
        return None
    names = ("lolr", "lolr_stderr")
    try:
        losses = replayed(run, "final")["reference_loss"].values
    except (KeyError, ValueError):
        return None
    geometry = read_geometry(run, "final", names)
    if geometry is None:
        return None
    squares = run.steps["grad_norm"].values ** 2
    known: Any = {
        "product": ("step", geometry["lolr"].values * squares),
        "product_stderr": ("step", geometry["lolr_stderr"].values * squares),
        "loss": ("step", run.steps["loss"].values),
        "reference_loss": ("step", losses),
    }
    attrs = {"run": run.location, "reference": "final", "optimal_loss": 0.0}
    terms = xr.Dataset(known, {"step": run.stored.step_numbers}, attrs)
    try:
        pairs = feasible_set(terms)
    except ValueError:
        return None
    best = float(pairs["best_alpha"])
    if not np.isfinite(best):
        return None
    alpha = np.linspace(0, max(2 * best, 1.0), N_GRID + 1)[1:]
    boundary = smallest_beta(pairs, alpha).values
    return pairs.assign(grid_alpha=("grid", alpha), smallest_beta=("grid", boundary))
