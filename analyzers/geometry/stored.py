"""Store the geometry of a run next to the run, and compute no chunk twice."""

from functools import partial
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr

from analyzers._engine.tasks import NAMES, task
from analyzers._execution.progress import compute
from analyzers.geometry.path_geometry import plan_geometry
from trajstore.format.arrays import STEP
from trajstore.reading.epochs import index_epochs
from trajstore.reading.results import results_location, target_slug
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike
from trajstore.store.location import open_store

DONE: Final = "progress/done"
"""Array that marks complete chunks, in the group of a result, bool (chunk,)."""


def store_geometry(
    run: Run,
    *,
    reference: TargetLike = "final",
    layers: bool = False,
    weight_decay: float = 0.0,
) -> xr.Dataset:
    """Compute `path_geometry`, and store the result next to the run.

    The result is written chunk by chunk. After an interruption, the next call computes only
    the missing chunks; if all chunks are stored, it returns immediately. A result lists
    everything it depends on in ``attrs["computed_from"]``. It is computed again if the run
    has grown, or if the target or the estimator has changed.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    reference, layers, weight_decay
        As in `path_geometry`.

    Returns
    -------
    xarray.Dataset
        The result of `path_geometry`, lazily read from the group of ``run.analysis.zarr``
        that is named after the target.

    Raises
    ------
    KeyError, ValueError, TypeError
        As for `path_geometry`.

    Notes
    -----
    The computation uses the Dask client of this process if there is one, else threads. The
    workers of a client write the results, so they need access to the directory of the run.

    Examples
    --------
    >>> import analyzers, shutil, trajstore
    >>> run = trajstore.open_run(shutil.copytree(example_run, tmp_path / "run.zarr"))
    >>> geometry = analyzers.store_geometry(run)  # doctest: +ELLIPSIS
    analysing ...
    >>> geometry.gamma.sizes["step"]
    60
    """
    plan = plan_geometry(run, reference, layers=layers, weight_decay=weight_decay)
    location, group = results_location(run), result_group(plan.dataset)
    done = _done_chunks(location, group, plan.dataset.attrs["computed_from"])
    if done is None:
        _begin(location, group, plan.dataset)
        done = np.zeros(len(plan.chunks), bool)
    tasks = [
        task(partial(store_chunk, location, group, i, steps), values)
        for i, (steps, values) in enumerate(zip(plan.chunks, plan.tasks, strict=True))
        if not done[i]
    ]
    if tasks:
        compute(tasks, "analysing")
    return open_results(location, group)


def result_group(geometry: xr.Dataset) -> str:
    """Name the group of a result after its target, its direction and its layers."""
    group = target_slug(geometry.attrs["reference"])
    direction = geometry.attrs["direction"]
    if direction != "gradient":
        group = f"{group}-of-{quote(direction, safe='')}"
    return f"{group}-layers" if "layer" in geometry.dims else group


def open_results(location: str, group: str) -> xr.Dataset:
    """Open results lazily."""
    read = partial(
        xr.open_zarr,
        open_store(location, read_only=True),
        group=group,
        consolidated=False,
    )
    # Coordinates are read in this process, not by a cluster.
    coordinates = read(chunks=None)[["epoch", "iteration"]].load().coords
    stored: xr.Dataset = read().assign_coords(coordinates)
    return index_epochs(stored)


def _done_chunks(
    location: str, group: str, computed_from: str
) -> npt.NDArray[np.bool_] | None:
    """Read the marks of complete chunks, bool (chunk,); None if this result is not stored."""
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
    """Write a result without its values, and mark all chunks as incomplete."""
    store = open_store(location)
    root = zarr.open_group(store, mode="a", use_consolidated=False)
    # The marks are removed first: a partly removed result must not look complete.
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
    """Write one chunk of steps, and then mark it as complete."""
    stored: Any = zarr.open_group(
        open_store(location), path=group, mode="r+", use_consolidated=False
    )
    for name, quantity in zip(NAMES, values, strict=True):
        stored[name][steps] = quantity
    stored[DONE][index] = True
