"""What there is at a location, checked, before anything is read from it."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from zarr.core.sync import sync
from zarr.storage import LocalStore

from trajstore.format.chunk_size import chunk_size
from trajstore.format.root_document import read_root
from trajstore.format.run_spec import SchemaError
from trajstore.store.chunks import (
    CheckedStore,
    ChunkError,
    read_bytes,
)
from trajstore.store.location import open_store

READ_WHOLE: Final = {
    "references": ("start", "weights", "probes"),
    "measurements": ("step", "epoch", "iteration", "window"),
    "": ("epoch", "iteration", "window"),
}
"""Arrays that a reader holds in memory as a whole, by where they lie."""

UNLISTED_BYTES: Final = 64 << 20
"""Bytes of such an array that are believed without looking for its chunks."""


class Opened(NamedTuple):
    """A store whose root document is valid.

    Attributes
    ----------
    store : CheckedStore
        Hands out chunks of those arrays only as far as they are sound.
    attributes : dict
        What the store says of itself.
    arrays : dict from str to dict
        Metadata of every array, by its path.
    """

    store: CheckedStore
    attributes: dict[str, Any]
    arrays: dict[str, dict[str, Any]]


def open_checked(location: str) -> Opened:
    """Open the store at a location and check its root document.

    Parameters
    ----------
    location : str
        As `trajstore.store.location.locate` returns it.

    Returns
    -------
    Opened
        With the lengths of the last commit.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `location`.
    SchemaError
        If there is no valid trajectory store; all problems are listed.
    """
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
        attributes, arrays = read_root(text)
    except SchemaError as error:
        problems = [f"{location}: {problem}" for problem in error.problems]
        raise SchemaError(problems) from error
    sizes = {name: chunk_size(document) for name, document in arrays.items()}
    store = CheckedStore(storage, sizes)
    if problems := [
        problem
        for name, document in arrays.items()
        if _is_read_whole(name)
        for problem in _absent(store, name, document)
    ]:
        raise SchemaError([f"{location}: {problem}" for problem in problems])
    return Opened(store, attributes, arrays)


def _is_read_whole(name: str) -> bool:
    group, _, array = name.rpartition("/")
    return array in READ_WHOLE.get(group.partition("/")[0], ())


def _absent(store: CheckedStore, name: str, document: Mapping[str, Any]) -> list[str]:
    """Refuse an array that would fill the memory, but is hardly there."""
    # A damaged store lacks some chunks. One that was made up lacks nearly all.
    rows = document["chunk_grid"]["configuration"]["chunk_shape"][0]
    n_chunks = -(-document["shape"][0] // rows)
    if n_chunks * chunk_size(document).decoded <= UNLISTED_BYTES:
        return []
    n_there = sync(_count(store.list_prefix(f"{name}/c/"), enough=n_chunks))
    if 2 * n_there >= n_chunks:
        return []
    return [f"{name}: expected {n_chunks} chunks, found {n_there}"]


async def _count(keys: AsyncIterator[str], *, enough: int) -> int:
    n = 0
    async for _ in keys:
        n += 1
        if n >= enough:
            break
    return n
