"""Map the paths of runs on the principal components of their stored iterates."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers._engine.labels import describe
from analyzers._engine.tasks import task
from analyzers.comparison.arrays import principal_components
from analyzers.comparison.gram import gram_task
from analyzers.comparison.run_list import as_runs, check_one_architecture, run_names
from analyzers.comparison.stored_iterates import stored_iterates
from trajstore.reading.accepts_path import RunLike

FloatArray = npt.NDArray[np.floating[Any]]

LONG_NAMES = {
    "coordinate": (
        "coordinate along a principal component",
        "<x - mean, e> with the unit vector e of the component",
    ),
    "explained_variance_ratio": (
        "share of the variance of the stored iterates",
        "sum of <x - mean, e>^2 / sum of |x - mean|^2",
    ),
}


def path_pca(runs: RunLike | Iterable[RunLike], *, components: int = 2) -> xr.Dataset:
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
        Number of components, at least 1 and at most the number of points.

    Returns
    -------
    xarray.Dataset
        Lazy, float64, with units of 1 and the dimensions ``point`` and ``component``, which
        counts from 1. The points of a run are consecutive and in the order of their steps.

        - ``coordinate`` (point, component): NaN for an iterate that is damaged or not finite,
          which does not count as a point either;
        - ``explained_variance_ratio`` (component): the share of the summed squared distances
          from the mean. NaN if there is one point only.

        The coordinates ``run`` (the shortest end of the path that tells the runs apart),
        ``step`` (number of optimizer steps before the iterate), ``epoch`` and ``kind``
        (``"anchor"``, ``"snapshot"`` or ``"final"``) belong to ``point``. A final iterate has
        the number of its last epoch.

    Raises
    ------
    ValueError
        If there are no runs, if their layers differ in names, shapes or order, if a run has no
        stored iterate, or if `components` is out of range.

    Notes
    -----
    Products of whole iterates are exact. An anchor differs from the iterate of its step by the
    error of an 8-bit code, at most 1/254 of the largest change since the anchor before it. The
    components are found from the products of all pairs of points, so the cost is
    one pass over the stored iterates and :math:`2 n^2 d` operations for n points of d
    parameters. A task holds a part of the parameters, at most 256 MB.

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
    opened = as_runs(runs)
    check_one_architecture(opened)
    iterates = [stored_iterates(run) for run in opened]
    for run, listed in zip(opened, iterates, strict=True):
        if not listed:
            raise ValueError(
                f"{run.location} holds no anchor yet; open it again after its first step."
            )
    points = [
        (name, iterate)
        for name, listed in zip(run_names(opened), iterates, strict=True)
        for iterate in listed
    ]
    n = len(points)
    if not 1 <= components <= n:
        raise ValueError(
            f"`components` must be from 1 to {n}, the number of stored iterates; got "
            f"{components}."
        )
    found = task(partial(decompose, n=components), gram_task(opened, iterates))
    values = da.from_delayed(found, shape=(n + 1, components), dtype=np.float64)  # type: ignore[no-untyped-call]
    dataset = xr.Dataset(
        {
            "coordinate": (("point", "component"), values[:-1]),
            "explained_variance_ratio": ("component", values[-1]),
        },
        coords={
            "component": np.arange(1, components + 1),
            "run": ("point", np.array([name for name, _ in points], object)),
            "step": ("point", [iterate.step for _, iterate in points]),
            "epoch": ("point", [iterate.epoch for _, iterate in points]),
            "kind": (
                "point",
                np.array([iterate.kind for _, iterate in points], object),
            ),
        },
        attrs={"runs": [run.location for run in opened]},
    )
    return describe(dataset, LONG_NAMES)


def decompose(gram: FloatArray, *, n: int) -> FloatArray:
    """Return the coordinates, and in the last row the explained shares, (point + 1, n)."""
    found = principal_components(gram, n)
    return np.vstack([found.coordinates, found.explained])
