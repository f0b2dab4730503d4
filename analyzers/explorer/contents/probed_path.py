"""Place iterates between anchors on the path map, from their probes.

The displacement of an iterate from the anchor of its window is regressed on the displacements
between neighbouring anchors, whose coordinates on the map are known. Probes are random
projections, so inner products of displacements follow from them to a few percent.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers._engine.probes import read_probes
from analyzers.explorer.contents.shown_run import ShownRun
from trajstore.reading.run import Run

MAX_POINTS: Final = 160
"""Largest number of iterates between anchors, for each run."""

PER_WINDOW: Final = 6
"""Largest number of iterates in a window."""

Floats = npt.NDArray[np.float64]


def rows_of_runs(pca: xr.Dataset) -> list[slice]:
    """Return the points of every run; points of a run are consecutive."""
    names = np.asarray(pca["run"].values)
    borders = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
    return [slice(a, b) for a, b in pairwise(borders)]


def path_lines(runs: Sequence[ShownRun], pca: xr.Dataset) -> dict[str, Floats]:
    """Return each run's path through stored and probed iterates, float64 (point, 2)."""
    lines = {}
    for run, rows in zip(runs, rows_of_runs(pca), strict=True):
        steps = np.asarray(pca["step"].values[rows], np.int64)
        places = np.asarray(pca["coordinate"].values[rows], float)[:, :2]
        if places.shape[1] < 2:
            places = np.hstack([places, np.zeros((len(steps), 1))])
        between = between_anchors(run.run, steps, places)
        order = np.argsort(np.concatenate([steps, between.steps]), kind="stable")
        lines[run.key] = np.vstack([places, between.coordinates])[order]
    return lines


class BetweenAnchors(NamedTuple):
    """Iterates between anchors, in the order of their steps."""

    steps: npt.NDArray[np.int64]
    coordinates: Floats  # (step, component)


def between_anchors(
    run: Run, steps: npt.NDArray[Any], coordinates: Floats
) -> BetweenAnchors:
    """Estimate the coordinates of iterates between anchors.

    Parameters
    ----------
    run : Run
        The run; an exact recording has no probes, and gets no points.
    steps : numpy.ndarray
        Steps of the known points of the run: its anchors, and the last iterate.
    coordinates : numpy.ndarray
        Coordinates of the known points, (point, component).

    Returns
    -------
    BetweenAnchors
        At most `MAX_POINTS` iterates.
    """
    nothing = BetweenAnchors(np.empty(0, np.int64), np.empty((0, coordinates.shape[1])))
    starts, n_windows = run.stored.starts, run.n_windows
    at = {int(step): place for step, place in zip(steps, coordinates, strict=True)}
    known = all(int(start) in at for start in starts)
    if run.spec.exact or n_windows < 2 or not known or not run.n_steps:
        return nothing
    chosen = _chosen_steps(starts, run.n_steps)
    rows = np.array([read_probes(run, np.array([k]))[1][0] for k in chosen])
    if not len(rows):
        return nothing
    anchors = run.windows["probes"].values
    places = np.array([at[int(start)] for start in starts])
    if run.n_steps in at:
        # The last iterate is one update away from the iterate of the last step.
        last = read_probes(run, np.array([run.n_steps - 1]))[1]
        anchors = np.vstack([anchors, last])
        places = np.vstack([places, at[run.n_steps]])
    windows = np.searchsorted(starts, chosen, side="right") - 1
    found = [
        _place(row, int(window), anchors, places)
        for row, window in zip(rows, windows, strict=True)
    ]
    estimated = np.array(found)
    is_known = np.isfinite(estimated).all(axis=1)
    return BetweenAnchors(chosen[is_known], estimated[is_known])


def _chosen_steps(starts: npt.NDArray[np.int64], n_steps: int) -> npt.NDArray[np.int64]:
    """Choose steps inside windows, evenly spaced, fewer for more windows."""
    each = min(PER_WINDOW, MAX_POINTS // len(starts))
    stops = np.append(starts[1:], n_steps)
    chosen: list[int] = []
    for start, stop in zip(starts, stops, strict=True):
        inner = np.linspace(start, stop, each + 2)[1:-1].astype(int)
        chosen += [int(k) for k in np.unique(inner) if start < k < min(stop, n_steps)]
    return np.array(chosen[:MAX_POINTS], np.int64)


def _place(row: Floats, window: int, anchors: Floats, places: Floats) -> Floats:
    """Return the coordinates of an iterate of a window, float64 (component,)."""
    borders = range(max(0, window - 1), min(len(anchors), window + 3))
    pairs = list(pairwise(borders))
    basis = np.array([anchors[b] - anchors[a] for a, b in pairs])
    if not np.isfinite(basis).all() or not np.isfinite(row).all():
        return np.full(places.shape[1], np.nan)
    steps = np.array([places[b] - places[a] for a, b in pairs])
    weights, *_ = np.linalg.lstsq(basis.T, row - anchors[window], rcond=1e-4)
    place: Floats = places[window] + weights @ steps
    return place
