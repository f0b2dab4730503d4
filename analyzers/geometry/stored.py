"""Store the geometry of a run next to the run, and compute no chunk twice."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec
from zarr.core.sync import sync

from analyzers._engine.tasks import NAMES, task
from analyzers._execution.progress import compute
from analyzers.geometry.path_geometry import GeometryPlan, plan_geometry
from trajstore.format.arrays import STEP
from trajstore.format.run_spec import SchemaError
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.results import (
    is_being_written,
    path_component,
    results_location,
    results_lock,
    target_slug,
    to_group,
)
from trajstore.reading.run import Run
from trajstore.reading.stored_results import (
    ExpectedArray,
    check_result,
    open_arrays,
    read_attributes,
    result_check,
    writable_store,
)
from trajstore.reading.target import TargetLike
from trajstore.store.chunks import (
    Array,
    ChunkError,
    Part,
    chunk_key,
    read_chunk,
    read_part,
)
from trajstore.store.location import open_store

DONE: Final = "progress/checks"
"""Array of the checks of each chunk's values, 0 for missing chunks, uint32 (chunk, quantity)."""


@accepts_path
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
    has grown, or if the target or the estimator has changed. Processes that compute the same
    result take turns, and each computes only the chunks that are still missing. If a result
    is replaced after it was opened, its chunks are computed when they are needed.

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
    >>> geometry = analyzers.store_geometry(run)
    >>> geometry.gamma.sizes["step"]
    60
    """
    plan = plan_geometry(run, reference, layers=layers, weight_decay=weight_decay)
    location, group = results_location(run), result_group(plan.dataset)
    # A second process waits here, and then finds the chunks that the first has stored.
    with results_lock(location, group):
        stored = _stored_arrays(location, group, plan)
        done = _done_chunks(stored) if stored else np.zeros(len(plan.chunks), bool)
        store = None if done.all() else writable_store(location)
        if store and not stored:
            _begin(store, group, plan.dataset)
        tasks = [
            task(partial(store_chunk, location, group, i, steps), values)
            for i, (steps, values) in enumerate(
                zip(plan.chunks, plan.tasks, strict=True)
            )
            if not done[i]
        ]
        if tasks:
            compute(tasks, "analysing")
        return _open_stored(location, group, plan)


def result_group(geometry: xr.Dataset) -> str:
    """Name the group of a result after its target, its direction and its layers."""
    group = target_slug(geometry.attrs["reference"])
    direction = geometry.attrs["direction"]
    if direction != "gradient":
        group = f"{group}-of-{path_component(direction)}"
    return f"{group}-layers" if "layer" in geometry.dims else group


def _expected(plan: GeometryPlan) -> dict[str, ExpectedArray]:
    """Return the arrays that a stored geometry must have, by name."""
    shape = plan.dataset[NAMES[0]].shape
    chunk = (plan.chunks[0].stop, *shape[1:])
    marks = ExpectedArray((len(plan.chunks), len(NAMES)), (1, len(NAMES)), "uint32")
    return dict.fromkeys(NAMES, ExpectedArray(shape, chunk)) | {DONE: marks}


def _stored_arrays(
    location: str, group: str, plan: GeometryPlan
) -> dict[str, Any] | None:
    """Open the stored result of a plan, None without one; warn of an invalid result."""
    computed_from = plan.dataset.attrs["computed_from"]
    try:
        attributes = read_attributes(location, group)
        if not attributes or attributes.get("computed_from") != computed_from:
            return None
        return open_arrays(location, group, _expected(plan))
    except SchemaError as error:
        text = f"A stored result is not valid, and is computed again: {error}."
        warnings.warn(text, stacklevel=3)
        return None


def _done_chunks(stored: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Return which chunks are marked as complete, bool (chunk,)."""
    marks = stored[DONE]
    done = np.asarray(_checks(marks).all(axis=1))
    if any(stored[name].nchunks_initialized < done.sum() for name in NAMES):
        group = marks.path.removesuffix(f"/{DONE}")
        text = (
            f"Chunks of the stored result {group} are missing; all are computed again."
        )
        warnings.warn(text, stacklevel=3)
        done[:] = False
    return done


def _checks(marks: Any) -> Array:
    """Read the checks of all chunks, 0 where a check is missing or damaged."""
    return read_part(marks, tuple(slice(0, n) for n in marks.shape)).values


def _open_stored(location: str, group: str, plan: GeometryPlan) -> xr.Dataset:
    """Return the dataset of a plan with its stored values, lazy."""
    # Coordinates and attributes are those of the plan; only numbers are read.
    stored = open_arrays(location, group, _expected(plan))
    assert stored is not None
    checks, variables = _checks(stored[DONE]), {}
    computed_from = plan.dataset.attrs["computed_from"]
    for j, name in enumerate(NAMES):
        lazy = plan.dataset[name].variable
        inner = [slice(0, n) for n in lazy.shape[1:]]
        chunks = [
            da.from_delayed(  # type: ignore[no-untyped-call]
                task(
                    partial(
                        _read_stored,
                        plan.compute_steps,
                        place=(location, group),
                        key=f"{name} {i}",
                        check=(computed_from, int(checks[i, j])),
                    ),
                    stored[name],
                    (steps, *inner),
                ),
                shape=(steps.stop - steps.start, *lazy.shape[1:]),
                dtype=np.float64,
            )
            for i, steps in enumerate(plan.chunks)
        ]
        values = da.concatenate(chunks)  # type: ignore[no-untyped-call]
        variables[name] = (lazy.dims, values, lazy.attrs)
    return plan.dataset.assign(variables)


def _read_stored(
    compute_steps: Callable[[slice], Array],
    array: Any,
    chunk: Part,
    *,
    place: tuple[str, str],
    key: str,
    check: tuple[str, int],
) -> Array:
    """Read a chunk of the result at a place; compute it if that is another result by now."""
    computed_from, expected = check
    try:
        values = read_chunk(array, chunk)
        name = chunk_key(array, chunk)
        check_result(values, computed_from, key, expected=expected, key=name)
    except ChunkError as error:
        if _is_current(computed_from, *place) and not is_being_written(*place):
            advice = f"; to compute the result again, delete {'/'.join(place)}"
            raise ChunkError(error.key, error.reason + advice) from error
    else:
        if _is_current(computed_from, *place):
            return values
    index = NAMES.index(array.path.rpartition("/")[2])
    computed: Array = compute_steps(chunk[0])[index]
    return computed


def _is_current(computed_from: str, location: str, group: str) -> bool:
    """Whether a group of results still holds the result that was opened."""
    try:
        attributes = read_attributes(location, group) or {}
    except SchemaError:
        return True  # Damage is no replacement; the chunk decides.
    return attributes.get("computed_from") == computed_from


def _begin(store: Store, group: str, lazy: xr.Dataset) -> None:
    """Write a result without its values, and mark all chunks as incomplete."""
    # The document is removed first: a partly removed result must not look like a complete
    # one, or like a damaged one.
    sync(store.delete(f"{group}/zarr.json"))
    sync(store.delete_dir(f"{group}/{DONE}"))
    to_group(store, group, lazy, compute=False)
    n_chunks = len(lazy.chunksizes[STEP])
    root = _open_group(store, "")
    root.create_array(
        f"{group}/{DONE}",
        shape=(n_chunks, len(NAMES)),
        chunks=(1, len(NAMES)),
        dtype="uint32",
        fill_value=0,
        filters=None,
        compressors=[Crc32cCodec()],
    )


def _open_group(store: Store, path: str) -> Any:
    options: Any = {"mode": "r+", "use_consolidated": False, "zarr_format": 3}
    return zarr.open_group(store, path=path, **options)


def store_chunk(
    location: str,
    group: str,
    index: int,
    steps: slice,
    values: npt.NDArray[np.float64],
) -> None:
    """Write one chunk of steps, and then mark it as complete."""
    stored = _open_group(open_store(location), group)
    # Chunks of NaN are stored like all others, so a missing chunk is noticed.
    whole: Any = {"write_empty_chunks": True}
    identity, checks = str(stored.attrs["computed_from"]), []
    for name, quantity in zip(NAMES, values, strict=True):
        checks.append(result_check(identity, f"{name} {index}", quantity))
        array = zarr.AsyncArray(stored[name].metadata, stored[name].store_path, whole)
        zarr.Array(array)[steps] = quantity
    stored[DONE][index] = np.array(checks, np.uint32)
