"""Results beside the run, written chunk by chunk, so that nothing is computed twice."""

from functools import partial
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr

from analyzers._engine.tasks import NAMES, geometry_tasks, task
from analyzers._execution.progress import compute
from analyzers._execution.results import results_location
from analyzers.geometry.path_geometry import (
    analysis_target,
    lazy_geometry,
    result_chunks,
)
from trajstore.format.arrays import STEP
from trajstore.reading import results
from trajstore.reading.epochs import index_epochs
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike
from trajstore.store.location import open_store

DONE: Final = "progress/done"
"""Array beside the variables: which chunks of steps are complete."""


def store_geometry(
    run: Run,
    *,
    reference: TargetLike = "final",
    layers: bool = False,
    weight_decay: float = 0.0,
) -> xr.Dataset:
    """Compute `path_geometry` into the store of results beside the run.

    Results are written chunk by chunk. After an interruption the next call computes what
    is missing; a call for what is there already returns at once. A result says in
    ``attrs["computed_from"]`` what it rests on, and is computed anew when the run has
    grown, or the reference or the estimator has changed.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    reference, layers, weight_decay
        As `path_geometry` takes them.

    Returns
    -------
    xarray.Dataset
        What `path_geometry` returns, lazily read from ``run.analysis.zarr``, in the group
        that `result_group` names.

    Raises
    ------
    KeyError, ValueError, TypeError
        As `path_geometry`.

    Notes
    -----
    Runs on the Dask client of this process if there is one, else on threads. The workers
    of a client write the results, and so have to reach the place where the run lies.

    Examples
    --------
    >>> import analyzers, shutil, trajstore
    >>> run = trajstore.open_run(shutil.copytree(example_run, tmp_path / "run.zarr"))
    >>> geometry = analyzers.store_geometry(run)  # doctest: +ELLIPSIS
    analysing ...
    >>> geometry.gamma.sizes["step"]
    60
    """
    target = analysis_target(run, reference)
    lazy = lazy_geometry(run, target, layers=layers, weight_decay=weight_decay)
    location, group = results_location(run), result_group(lazy)
    done = _done_chunks(location, group, lazy.attrs["computed_from"])
    if done is None:
        _begin(location, group, lazy)
        done = np.zeros(len(result_chunks(run)), bool)
    missing = [(i, steps) for i, steps in enumerate(result_chunks(run)) if not done[i]]
    if missing:
        chunks = [steps for _, steps in missing]
        values = geometry_tasks(
            run, target, chunks, layers=layers, weight_decay=weight_decay
        )
        tasks = [
            task(partial(store_chunk, location, group, i, steps), of_chunk)
            for (i, steps), of_chunk in zip(missing, values, strict=True)
        ]
        compute(tasks, "analysing")
    return open_results(location, group)


def result_group(geometry: xr.Dataset) -> str:
    """Name the group of a result by its reference, direction, and whether by layer."""
    reference = results.target_slug(geometry.attrs["reference"])
    direction = geometry.attrs["direction"]
    if direction != "gradient":
        reference = f"{reference}-of-{quote(direction, safe='')}"
    return f"{reference}-layers" if "layer" in geometry.dims else reference


def open_results(location: str, group: str) -> xr.Dataset:
    """Open results lazily."""
    read = partial(
        xr.open_zarr,
        open_store(location, read_only=True),
        group=group,
        consolidated=False,
    )
    # Coordinates are read here, not by a cluster.
    places = read(chunks=None)[["epoch", "iteration"]].load()
    stored: xr.Dataset = read().assign_coords(places.coords)
    return index_epochs(stored)


def _done_chunks(
    location: str, group: str, computed_from: str
) -> npt.NDArray[np.bool_] | None:
    """Return which chunks are complete; None where nothing of this result is there."""
    try:
        stored = zarr.open_group(
            open_store(location), path=group, mode="r", use_consolidated=False
        )
        if stored.attrs.get("computed_from") != computed_from or DONE not in stored:
            return None
    except FileNotFoundError:
        return None
    done: Any = stored[DONE]
    return np.asarray(done[:], bool)


def _begin(location: str, group: str, lazy: xr.Dataset) -> None:
    """Write everything but the values; what says that chunks are complete comes last."""
    store = open_store(location)
    root = zarr.open_group(store, mode="a", use_consolidated=False)
    # First, so that nothing that is half removed looks complete.
    if DONE in root.require_group(group):
        del root[f"{group}/{DONE}"]
    lazy.to_zarr(store, group=group, mode="w", consolidated=False, compute=False)
    n_chunks = len(lazy.chunksizes[STEP])
    root.create_array(
        f"{group}/{DONE}",
        shape=(n_chunks,),
        chunks=(1,),
        dtype="bool",
        fill_value=False,
    )


def store_chunk(
    location: str,
    group: str,
    index: int,
    steps: slice,
    values: npt.NDArray[np.float64],
) -> None:
    """Write the results of one chunk of steps, and then that they are complete."""
    stored: Any = zarr.open_group(
        open_store(location), path=group, mode="r+", use_consolidated=False
    )
    for name, of_quantity in zip(NAMES, values, strict=True):
        stored[name][steps] = of_quantity
    stored[DONE][index] = True
