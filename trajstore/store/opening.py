"""Open the store at a location, and check its metadata before any chunk is read.

Directories of stores, and of results next to them, are recognised by their root documents.
"""

import os
import re
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
from trajstore.store.location import OutsideStoreError, inside, open_store

LOADED_ARRAYS: Final = ("epoch", "iteration", "window")
"""Arrays of each row group that a reader loads into memory completely."""

BEGINNING: Final = re.compile(
    rb'\{"zarr_format": 3, "node_type": "group", "attributes": '
    rb'\{(?:"checksum": "[0-9a-f]{8}", )?"format": "trajstore", '
)
"""Beginning of every root document of a store, of this and of earlier versions."""

RESULTS_SUFFIX: Final = ".analysis.zarr"
"""End of the name of the directory of a run's results."""

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
            f"There is no trajectory store at {location}: no zarr.json. Check the bucket and the "
            "path."
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


def is_run_directory(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a directory with the root document of a trajectory store."""
    # The document may be damaged after its beginning.
    try:
        if not Path(path).is_dir():
            return False
        with inside(Path(path), "zarr.json").open("rb") as file:
            return BEGINNING.match(file.read(256)) is not None
    except (OSError, ValueError, OutsideStoreError):  # ValueError: a null character
        return False


def is_results_directory(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the directory of the results of a store next to it."""
    text = os.fspath(path).rstrip("/" + os.sep)
    if not text.endswith(RESULTS_SUFFIX) or not Path(text).is_dir():
        return False
    return is_run_directory(text.removesuffix(RESULTS_SUFFIX) + ".zarr")
