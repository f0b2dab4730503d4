"""Find the geometries stored next to a run, and read them without computing anything."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers._engine.labels import layer_names, step_coordinates
from analyzers._engine.tasks import NAMES
from analyzers.geometry.path_geometry import ESTIMATOR, result_chunks
from analyzers.geometry.stored import DONE
from trajstore.format.run_spec import SchemaError
from trajstore.reading.results import results_location
from trajstore.reading.run import Run
from trajstore.reading.stored_results import (
    ExpectedArray,
    check_result,
    open_arrays,
    read_attributes,
)
from trajstore.store.chunks import ChunkError, chunks_of, read_chunk
from trajstore.store.location import is_remote

LAYERS: Final = "-layers"
"""End of the name of a group that holds a geometry by layer."""

MAX_GROUPS: Final = 64
"""Largest number of groups of results to look at."""

Floats = npt.NDArray[np.float64]


class StoredGeometry(NamedTuple):
    """A complete geometry next to a run."""

    group: str
    reference: str  # label of the target
    note: str


def stored_geometries(run: Run) -> list[StoredGeometry]:
    """List the geometries next to a run that belong to its present state, `final` first."""
    found = []
    for group in _groups(run):
        if group.endswith(LAYERS):
            continue
        attributes = _attributes(run, group)
        if attributes is not None and _is_current(run, attributes, layers=False):
            label = str(attributes.get("reference", group))
            note = str(attributes.get("reference_note", ""))
            found.append(StoredGeometry(group, label, note))
    return sorted(found, key=lambda one: (one.group != "final", one.group))


def read_geometry(
    run: Run, group: str, names: Sequence[str] = tuple(NAMES), *, layers: bool = False
) -> xr.Dataset | None:
    """Read variables of a stored geometry; None if it is absent, incomplete or damaged."""
    attributes = _attributes(run, group)
    if attributes is None or not _is_current(run, attributes, layers=layers):
        return None
    chunks = result_chunks(run)
    inner = (len(run.layout.names),) if layers else ()
    shape = (run.n_steps, *inner)
    array = ExpectedArray(shape, (chunks[0].stop, *inner))
    marks = ExpectedArray((len(chunks), len(NAMES)), (1, len(NAMES)), "uint32")
    expected = dict.fromkeys(names, array) | {DONE: marks}
    try:
        arrays = open_arrays(results_location(run), group, expected)
        if arrays is None:
            return None
        checks = np.asarray(arrays[DONE][:])
        if not checks.all():
            return None
        identity = str(attributes["computed_from"])
        values = {
            name: _read(arrays[name], identity, name, checks[:, NAMES.index(name)])
            for name in names
        }
    except (SchemaError, ChunkError):
        return None
    dims = ("step", "layer") if layers else ("step",)
    coordinates = step_coordinates(run)
    if layers:
        coordinates["layer"] = layer_names(run)
    kept = ("reference", "reference_note", "n_steps", "direction", "status")
    attrs = {name: attributes[name] for name in kept if name in attributes}
    return xr.Dataset(
        {name: (dims, value) for name, value in values.items()}, coordinates, attrs
    )


def _read(array: Any, identity: str, name: str, checks: npt.NDArray[Any]) -> Floats:
    """Read an array of a geometry, chunk by chunk, each against its check."""
    values = np.empty(array.shape)
    for i, (chunk, check) in enumerate(zip(chunks_of(array), checks, strict=True)):
        part = read_chunk(array, chunk)
        key = f"{name} {i}"
        check_result(part, identity, key, expected=int(check), key=array.path)
        values[chunk] = part
    return values


def _groups(run: Run) -> list[str]:
    location = results_location(run)
    if is_remote(location):
        return ["final", *(f"epoch-{e}" for e in list(run.stored.epoch_windows)[:8])]
    folder = Path(location)
    if not folder.is_dir():
        return []
    names = [p.name for p in folder.iterdir() if (p / "zarr.json").is_file()]
    return sorted(names)[:MAX_GROUPS]


def _attributes(run: Run, group: str) -> Mapping[str, Any] | None:
    try:
        return read_attributes(results_location(run), group)
    except SchemaError:
        return None


def _is_current(run: Run, attributes: Mapping[str, Any], *, layers: bool) -> bool:
    """Whether a result says that it was computed from the gradients of this state of a run."""
    try:
        facts = json.loads(str(attributes.get("computed_from", "")))
    except ValueError:
        return False
    if not isinstance(facts, dict):
        return False
    document = run.stored.document
    wanted = {
        "created": document.created,
        "n_steps": run.n_steps,
        "n_resumes": len(document.resumes),
        "layers": layers,
        "direction": "gradient",
    }
    if any(facts.get(name) != value for name, value in wanted.items()):
        return False
    return str(facts.get("version", "")).endswith(f", {ESTIMATOR}")
