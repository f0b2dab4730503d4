"""Map the paths of runs on the principal components of their stored iterates."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers._engine.blas import one_blas_thread
from analyzers._engine.labels import describe
from analyzers._engine.tasks import task
from analyzers.comparison.arrays.components import principal_components
from analyzers.comparison.arrays.probed_points import along
from analyzers.comparison.points import (
    Chosen,
    choose,
    locate_points,
    point_coordinates,
)
from analyzers.comparison.products import Products, products_task
from analyzers.comparison.run_list import as_runs, check_one_architecture
from trajstore.reading.accepts_path import RunLike
from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]

LONG_NAMES: Final = {
    "coordinate": (
        "coordinate along a principal component",
        "<x - mean, e> with the unit vector e of the component",
    ),
    "explained_variance_ratio": (
        "share of the variance of the stored iterates",
        "sum of <x - mean, e>^2 / sum of |x - mean|^2",
    ),
}


def path_pca(
    runs: RunLike | Iterable[RunLike],
    *,
    components: int = 2,
    every: int | None = None,
) -> xr.Dataset:
    r"""Return the principal components of the stored iterates of one or several runs.

    The points are the iterates that stores keep whole: the anchors, the snapshots and the final
    iterates of all runs together, each counted once. With :math:`\bar x` their mean, the
    coordinates of a point are its products :math:`\langle x - \bar x, e_i \rangle` with the
    eigenvectors :math:`e_i` of their covariance, in descending order of the eigenvalues.

    Parameters
    ----------
    runs : trajstore.Run, str, os.PathLike or iterable of them
        One or several runs of one architecture, such as a run and its branches, or the paths of
        their stores.
    components : int, default: 2
        Number of components, at least 1 and at most the number of stored iterates.
    every : int, optional
        Also locate every `every`-th iterate, from its probes. These points do not change the
        components.

    Returns
    -------
    xarray.Dataset
        Lazy, float64, with units of 1 and the dimensions ``point`` and ``component``, which
        counts from 1. The points of a run are consecutive and in the order of their steps.

        - ``coordinate`` (point, component): NaN for an iterate that is damaged or not finite,
          which does not count as a point either;
        - ``coordinate_stderr`` (point, component): its standard error, 0 for stored iterates;
        - ``explained_variance_ratio`` (component): the share of the summed squared distances
          from the mean. NaN if there is one point only.

        The coordinates ``run`` (the shortest end of the path that tells the runs apart),
        ``step`` (number of optimizer steps before the iterate), ``epoch`` and ``kind``
        (``"anchor"``, ``"snapshot"``, ``"final"``, or ``"step"`` for the iterates of `every`)
        belong to ``point``. A final iterate has the number of its last epoch.

    Raises
    ------
    ValueError
        If there are no runs, if their layers differ in names, shapes or order, if a run has no
        stored iterate, or if `components` or `every` is out of range.

    Notes
    -----
    Products of whole iterates are exact. An anchor differs from the iterate of its step by the
    error of an 8-bit code, at most 1/254 of the largest change since the anchor before it. The
    components are found from the products of all pairs of points, so the cost is
    one pass over the stored iterates and :math:`2 n^2 d` operations for n points of d
    parameters. A task holds a part of the parameters, at most 256 MB.

    An iterate between stored ones has the displacement a from its anchor. Products of a with the
    basis of its window are recorded. Its part along the displacement to the end of the window,
    and the product of the rest with :math:`e_i`, are estimated from n fixed random probes, with
    a standard error of about :math:`|a'| |e_i'| / \sqrt{n}`; here a' and :math:`e_i'` are the
    parts without the basis and that displacement. Errors of neighbouring steps agree in part.

    The first window and, if the number of steps was known, the last one are cut into shorter
    windows, so the ends of a run have more points than its middle. The sign of a component is
    arbitrary; here the coordinate with the largest magnitude is positive.

    Distances in the map are smaller than distances between iterates. The path of a random walk
    looks like a smooth curve, too: its first two components explain about three quarters of the
    variance [1]_.

    References
    ----------
    .. [1] J. Antognini, J. Sohl-Dickstein, "PCA of high dimensional random walks with
       comparison to neural network training", 2018, section 3. arXiv 1806.08805.

    Examples
    --------
    >>> import analyzers
    >>> path = analyzers.path_pca(example_run)
    >>> path.coordinate.dims
    ('point', 'component')
    >>> bool(path.explained_variance_ratio.sum() > 0.5)
    True
    """
    if every is not None and every < 1:
        raise ValueError(f"`every` must be at least 1, got {every}.")
    opened = as_runs(runs)
    check_one_architecture(opened)
    between = [_between(run, every) for run in opened]
    chosen = choose(opened, between, with_stored=True)
    n, n_whole = len(chosen.points), sum(p.kind != "step" for p in chosen.points)
    if not 1 <= components <= n_whole:
        raise ValueError(
            f"`components` must be from 1 to {n_whole}, the number of stored iterates; got "
            f"{components}."
        )
    products = products_task(
        opened, chosen.iterates, sorted(set(chosen.probed.values()))
    )
    found = task(partial(decompose, opened, chosen, n=components), products)
    values = da.from_delayed(  # type: ignore[no-untyped-call]
        found, shape=(2 * n + 1, components), dtype=np.float64
    )
    dims = ("point", "component")
    dataset = xr.Dataset(
        {
            "coordinate": (dims, values[:n]),
            "coordinate_stderr": (dims, values[n:-1]),
            "explained_variance_ratio": ("component", values[-1]),
        },
        coords={"component": np.arange(1, components + 1)}
        | point_coordinates(opened, chosen.points),
        attrs={"runs": [run.location for run in opened]},
    )
    return describe(dataset, LONG_NAMES)


def _between(run: Run, every: int | None) -> list[int]:
    """Return every `every`-th step, without the first steps of windows."""
    if every is None:
        return []
    return sorted({*range(0, run.n_steps, every)} - {*map(int, run.stored.starts)})


def decompose(
    runs: Sequence[Run], chosen: Chosen, products: Products, *, n: int
) -> FloatArray:
    """Return the coordinates, their errors, and in the last row the explained shares."""
    # The result is float64 (2 * point + 1, n). Only stored iterates determine the components.
    kinds = [iterate.kind for listed in chosen.iterates for iterate in listed]
    defining = np.flatnonzero(np.array(kinds) != "step")
    with one_blas_thread(), np.errstate(invalid="ignore", over="ignore"):
        found = principal_components(products.gram[np.ix_(defining, defining)], n)
        weights = np.zeros((len(products.gram), n))
        weights[defining] = found.weights
        mean = np.zeros(len(products.gram))
        mean[defining] = found.is_known / max(1, found.is_known.sum())
        located, known = locate_points(runs, chosen, products)
        estimates = []
        for p, point in zip(chosen.points, located, strict=True):
            key = chosen.probed[p.run] if p.whole < 0 else next(iter(known))
            estimates.append(along(known[key], point, weights.T, mean))
    values = np.array([e.value for e in estimates])
    errors = np.array([e.stderr for e in estimates])
    # There are fewer components than points.
    values[:, np.isnan(found.coordinates).all(0)] = np.nan
    return np.vstack([values, errors, found.explained])
