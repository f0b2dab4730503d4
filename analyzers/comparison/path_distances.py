"""Measure the distances between iterates of one or several runs."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers._engine.blas import one_blas_thread
from analyzers._engine.labels import describe
from analyzers._engine.tables import read_tables
from analyzers._engine.tasks import task
from analyzers.comparison.arrays.pair_distances import Points
from analyzers.comparison.points import (
    Chosen,
    Point,
    choose,
    locate_points,
    point_coordinates,
)
from analyzers.comparison.products import Products, products_task
from analyzers.comparison.run_list import as_runs, check_one_architecture
from trajstore.reading.accepts_path import RunLike
from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]

MAX_POINTS: Final = 4096
"""Largest number of points, whose distances take 256 MB."""


def path_distances(
    runs: RunLike | Iterable[RunLike], *, steps: Sequence[int] | None = None
) -> xr.Dataset:
    r"""Return the distances between all pairs of iterates of one or several runs.

    Parameters
    ----------
    runs : trajstore.Run, str, os.PathLike or iterable of them
        One or several runs of one architecture, or the paths of their stores.
    steps : sequence of int, optional
        Numbers of optimizer steps before the iterates to compare, from 0 to the number of steps
        of the longest run; runs leave out those that they did not reach. By default, the
        iterates that the stores keep whole are compared: anchors, snapshots and final iterates.

    Returns
    -------
    xarray.Dataset
        Lazy, with the dimensions ``point`` and ``other_point``, which run over the same
        iterates: run by run, in the order of the steps. ``distance`` is float64,
        ``distance_stderr`` its standard error, both with units of 1. They are NaN where an
        iterate is damaged or not finite, and 0 between an iterate and itself. The
        coordinates ``run``, ``step``, ``epoch`` and ``kind`` are those of `path_pca`, with
        ``"step"`` as the kind of an iterate of which the store holds no whole copy (or any
        iterate of an exact run); ``other_run``, ``other_step``, ``other_epoch`` and
        ``other_kind`` belong to ``other_point``.

    Raises
    ------
    ValueError
        If there are no runs, if their layers differ in names, shapes or order, if a run has no
        stored iterate, if no run has any of the `steps`, if a step is negative, or if there
        are more than 4096 points.

    Notes
    -----
    Distances between whole iterates are exact up to rounding; an anchor is compared as it
    is stored. Let :math:`a` be the displacement of another iterate from its anchor. Its length
    and its products with the basis of the window are recorded, and fixed random probes estimate
    its product with the displacement f to the end of the window, and with other vectors. To
    first order the relative standard error of a distance D is
    :math:`(1 - c^2) |a| / (D \sqrt{n})` for n probes and the cosine c of the compared vectors:
    small where the path moved far compared with the length of a window, and 0 at the borders of
    windows. Adjacent iterates have the recorded length of the update as their distance, without
    an error.

    Two runs share random signs if they were recorded with the same seed and the same sizes of
    the sketch and of the probes. Otherwise the product of two displacements is only bounded, and
    the bound takes the place of its standard error. Errors of distances to one iterate agree in
    part, because they come from the same probes. A run recorded with ``exact=True`` has no
    errors but rounding.

    Examples
    --------
    >>> import analyzers
    >>> apart = analyzers.path_distances(example_run, steps=[0, 30, 60])
    >>> apart.distance.dims
    ('point', 'other_point')
    >>> float(apart.distance[1, 1])
    0.0
    """
    opened = as_runs(runs)
    check_one_architecture(opened)
    chosen = choose(opened, _steps_of(opened, steps), with_stored=steps is None)
    n = len(chosen.points)
    if n > MAX_POINTS:
        raise ValueError(
            f"{n} iterates have more distances than fit into memory; choose at most "
            f"{MAX_POINTS}, for example with steps=range(0, {opened[0].n_steps}, "
            f"{max(1, opened[0].n_steps // 100)})."
        )
    products = products_task(
        opened, chosen.iterates, sorted(set(chosen.probed.values()))
    )
    found = task(partial(distances, opened, chosen), products)
    values = da.from_delayed(  # type: ignore[no-untyped-call]
        found, shape=(2, n, n), dtype=np.float64
    )
    dims = ("point", "other_point")
    dataset = xr.Dataset(
        {"distance": (dims, values[0]), "distance_stderr": (dims, values[1])},
        coords=point_coordinates(opened, chosen.points)
        | point_coordinates(opened, chosen.points, prefix="other_"),
        attrs={"runs": [run.location for run in opened]},
    )
    return describe(dataset, {"distance": ("distance of two iterates", "|x_j - x_k|")})


def _steps_of(runs: Sequence[Run], steps: Sequence[int] | None) -> list[list[int]]:
    """Return the chosen steps of each run."""
    if steps is None:
        return [[] for _ in runs]
    chosen = sorted({int(step) for step in steps})
    if chosen and chosen[0] < 0:
        raise ValueError(f"`steps` must not be negative, got {chosen[0]}.")
    of_runs = [
        [k for k in chosen if k < run.n_steps + int(run.has_final)] for run in runs
    ]
    if not any(of_runs):
        longest = max(run.n_steps for run in runs)
        raise ValueError(
            f"No run has any of the steps {chosen[:5]}; the longest run has {longest} steps."
        )
    return of_runs


def distances(runs: Sequence[Run], chosen: Chosen, products: Products) -> FloatArray:
    """Return the distances and their standard errors, float64 (2, point, point)."""
    located, known = locate_points(runs, chosen, products)
    points, n = chosen.points, len(chosen.points)
    group = np.array([chosen.probed[p.run] if p.whole < 0 else -1 for p in points])
    result = np.zeros((2, n, n))
    with one_blas_thread(), np.errstate(invalid="ignore", over="ignore"):
        pairs = Points(located, known, group, _windows(runs, points))
        for i in range(n - 1):
            result[:, i, i + 1 :] = pairs.distances_from(i, slice(i + 1, n))
        _set_updates(runs, points, result)
        _set_identical(runs, chosen, result)
    lost = np.array([not np.isfinite(point.weights).all() for point in located])
    result += result.swapaxes(1, 2)
    result[:, lost] = np.nan
    result[:, :, lost] = np.nan
    return result


def _windows(runs: Sequence[Run], points: Sequence[Point]) -> npt.NDArray[np.int64]:
    """Return a number for each window of each run, -1 for whole iterates, (point,)."""
    numbers: dict[tuple[int, int], int] = {}
    windows = np.full(len(points), -1)
    for i, p in enumerate(points):
        if p.whole < 0:
            rows = slice(p.step, p.step + 1)
            window = int(runs[p.run].stored.rows("window", rows)[0])
            windows[i] = numbers.setdefault((p.run, window), len(numbers))
    return windows


def _set_updates(
    runs: Sequence[Run], points: Sequence[Point], result: FloatArray
) -> None:
    """Set the distances of adjacent iterates to the recorded lengths of the updates."""
    at = {(p.run, p.step): i for i, p in enumerate(points) if p.whole < 0}
    for (run, step), i in at.items():
        j = at.get((run, step + 1))
        if j is not None:
            update_sq = read_tables(runs[run], slice(step, step + 1))["update_sq"]
            result[:, i, j] = np.sqrt(update_sq.sum()), 0.0


def _set_identical(runs: Sequence[Run], chosen: Chosen, result: FloatArray) -> None:
    """Set the distance of an iterate from itself to 0, where a run is given twice."""
    same: dict[Any, list[int]] = {}
    iterates = [iterate for listed in chosen.iterates for iterate in listed]
    for i, p in enumerate(chosen.points):
        run = runs[p.run]
        whole = iterates[p.whole] if p.whole >= 0 else None
        key = (run.stored.document.created, run.location, p.step, whole)
        same.setdefault(key, []).append(i)
    for indices in same.values():
        for a, i in enumerate(indices):
            for j in indices[a + 1 :]:
                result[:, i, j] = 0.0
