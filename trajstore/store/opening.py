"""Open the store at a location, and check its metadata before any chunk is read."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, NamedTuple

from zarr.core.sync import sync
from zarr.storage import LocalStore

from trajstore.format.arrays import STEP, StoredArray
from trajstore.format.chunk_size import ChunkSize, chunk_size
from trajstore.format.document import Document, parse_document
from trajstore.format.run_spec import SchemaError
from trajstore.store.chunks import (
    CheckedStore,
    ChunkError,
    read_bytes,
)
from trajstore.store.location import open_store

LOADED_ARRAYS: Final = ("epoch", "iteration", "window")
"""Arrays of each row group that a reader loads into memory completely."""

MAX_UNCHECKED_BYTES: Final = 64 << 20
"""Size of a loaded array above which at least half of its chunks must exist."""


class OpenedStore(NamedTuple):
    """A store whose root document is valid."""

    store: CheckedStore  # checks the chunks of the document's arrays
    document: Document


def open_checked(location: str) -> OpenedStore:
    """Open the store at a location, as of its last commit; check its root document."""
    storage = open_store(location, read_only=True)
    if isinstance(storage, LocalStore) and not Path(location).exists():
        raise FileNotFoundError(f"There is no trajectory store at {location}.")
    try:
        text = read_bytes(CheckedStore(storage, {}), "zarr.json")
    except ChunkError as error:
        raise SchemaError([f"{location}: zarr.json {error.reason}."]) from error
    if text is None and not isinstance(storage, LocalStore):
        raise FileNotFoundError(
            f"There is no trajectory store at {location}: no zarr.json."
        )
    if text is None:
        raise SchemaError([f"{location}: not a trajectory store; it has no zarr.json."])
    try:
        document = parse_document(text)
    except SchemaError as error:
        problems = [f"{location}: {problem}" for problem in error.problems]
        raise SchemaError(problems) from error
    sizes = {name: chunk_size(array.spec) for name, array in document.arrays.items()}
    store = CheckedStore(storage, sizes)
    loaded = [document.steps.path_of(name) for name in LOADED_ARRAYS]
    for group in document.measurements.values():
        loaded += [group.path_of(name) for name in (*LOADED_ARRAYS, STEP)]
    loaded += ["references/start", "references/weights", "references/probes"]
    problems = []
    for name in loaded:
        problems += _missing_chunks(store, name, document.arrays[name], sizes[name])
    if problems:
        raise SchemaError([f"{location}: {problem}" for problem in problems])
    return OpenedStore(store, document)


def _missing_chunks(
    store: CheckedStore, name: str, array: StoredArray, size: ChunkSize
) -> list[str]:
    """Return a problem if a large array lacks most of its chunks."""
    # A damaged store rarely lacks most chunks of an array. A store with forged metadata, which
    # could make a reader fill its memory, has almost none.
    n_chunks = -(-array.length // array.spec.chunk[0])
    if n_chunks * size.decoded <= MAX_UNCHECKED_BYTES:
        return []
    n_found = sync(_count(store.list_prefix(f"{name}/c/"), enough=n_chunks))
    if 2 * n_found >= n_chunks:
        return []
    return [f"{name}: expected {n_chunks} chunks, found {n_found}"]


async def _count(keys: AsyncIterator[str], *, enough: int) -> int:
    n = 0
    async for _ in keys:
        n += 1
        if n >= enough:
            break
    return n
