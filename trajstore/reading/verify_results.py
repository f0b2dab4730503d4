"""Verify the results of analyses next to a run."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from zarr.core.sync import sync

from trajstore.format.document import MAX_CHUNK_BYTES
from trajstore.format.run_spec import SchemaError
from trajstore.reading.results import results_location
from trajstore.reading.run import Run
from trajstore.reading.stored_results import (
    CHECKS,
    ExpectedArray,
    check_result,
    open_arrays,
    read_attributes,
    read_metadata,
    result_check,
)
from trajstore.store.chunks import (
    MISSING,
    ChunkError,
    chunk_key,
    chunks_of,
    read_chunk,
)
from trajstore.store.location import OutsideStoreError, open_store

PROGRESS: Final = "progress/checks"
"""Array of the checks of a result that is written chunk by chunk, uint32 (chunk, quantity)."""

MAX_ARRAYS: Final = 10_000

MAX_CHUNKS: Final = 1 << 16
"""Largest number of chunks of an array of results."""


def result_problems(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the key and the description of every problem of a run's results."""
    try:
        location = results_location(run)
        documents = sync(_documents(location))
    except (OutsideStoreError, FileNotFoundError) as error:
        if isinstance(error, OutsideStoreError):
            yield f"{run.location}'s results", error.reason
        return
    for key in documents:
        group, _, name = key.removesuffix("/zarr.json").rpartition("/")
        if not group or group.endswith("/progress"):
            continue
        try:
            yield from _array_problems(location, group, name)
        except SchemaError as error:
            yield key, "; ".join(error.problems)


async def _documents(location: str) -> list[str]:
    keys: AsyncIterator[str] = open_store(location, read_only=True).list()
    found = []
    async for key in keys:
        if key.endswith("/zarr.json"):
            found.append(key)
        if len(found) == MAX_ARRAYS:
            break
    return sorted(found)


def _array_problems(location: str, group: str, name: str) -> Iterator[tuple[str, str]]:
    """Read every chunk of an array of float64, the type of all results that are read back."""
    document = read_metadata(location, f"{group}/{name}")
    shape = document.get("shape")
    if not isinstance(shape, list) or not _is_shape(shape):
        return
    if document.get("data_type") != "float64":
        return
    attributes = read_attributes(location, group) or {}
    identity = str(attributes.get("computed_from", ""))
    arrays = open_arrays(location, group, {name: ExpectedArray(tuple(shape))})
    if arrays is None:
        return
    [array] = arrays.values()
    if prod(array.chunks) * 8 > MAX_CHUNK_BYTES:
        return
    n_chunks = prod(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))
    if n_chunks > MAX_CHUNKS:
        yield f"{group}/{name}", f"claims {n_chunks} chunks, more than any result has"
        return
    progress = _progress(location, group)
    # A process that was killed when it began a result leaves neither checks nor marks.
    is_complete = progress is not None or isinstance(attributes.get(CHECKS), Mapping)
    values = np.empty(array.shape) if prod(array.shape) * 8 < MAX_CHUNK_BYTES else None
    for i, chunk in enumerate(chunks_of(array)):
        key = chunk_key(array, chunk)
        checks = progress.get(i, []) if progress is not None else []
        if not all(checks):
            continue  # The chunk is not computed yet.
        try:
            part = read_chunk(array, chunk)
            if (
                progress is not None
                and result_check(identity, f"{name} {i}", part) not in checks
            ):
                yield key, "is not the part of this result that was written there"
        except ChunkError as error:
            if is_complete or error.reason != MISSING:
                yield error.key, error.reason
            values = None
            continue
        if values is not None:
            values[chunk] = part
    known = attributes.get(CHECKS)
    if isinstance(known, Mapping) and name in known and values is not None:
        try:
            check_result(
                values, identity, name, expected=known[name], key=f"{group}/{name}"
            )
        except ChunkError as error:
            yield error.key, error.reason


def _is_shape(shape: list[Any]) -> bool:
    return all(type(n) is int and n >= 0 for n in shape)


def _progress(location: str, group: str) -> dict[int, list[int]] | None:
    """Return the checks of complete chunks by number, None for a result written at once."""
    document = read_metadata(location, f"{group}/{PROGRESS}")
    shape = document.get("shape")
    if not isinstance(shape, list) or not _is_shape(shape) or len(shape) != 2:
        return None
    expected = ExpectedArray(tuple(shape), (1, shape[1]), "uint32")
    arrays = open_arrays(location, group, {PROGRESS: expected})
    if arrays is None:
        return None
    [marks] = arrays.values()
    found: dict[int, list[int]] = {}
    for i in range(shape[0]):
        row: npt.NDArray[Any] = np.zeros(shape[1], np.uint32)
        with suppress(ChunkError):
            row = read_chunk(marks, (slice(i, i + 1), slice(0, shape[1])))[0]
        found[i] = row.tolist() or [0]
    return found
