"""Append to the arrays of a Zarr store in commits that are atomic to readers.

A commit writes chunks, then the metadata of the arrays, and finally the metadata of the
root group: one small document, replaced atomically. The root document holds the
consolidated metadata of all arrays, including their shapes. Rows beyond these shapes are
invisible, even if they are on disk.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from zarr import AsyncArray
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.storage import StorePath

from trajstore.format.arrays import ArraySpec, group_metadata
from trajstore.format.chunk_size import chunk_size
from trajstore.store.chunks import CheckedStore, ChunkError, naming_damage
from trajstore.store.event_loop import EventLoop

Array = npt.NDArray[Any]


class PendingRows(NamedTuple):
    """Values to be written by the next commit."""

    shape: tuple[int, ...]
    # Called with a slice for each of the first two dimensions, or for the only dimension.
    read: Callable[[Any], Array]


class Committer:
    """Collects writes to a store's arrays and commits them; not thread-safe."""

    def __init__(self, store: Store, loop: EventLoop) -> None:
        self._store, self._loop = store, loop
        self._specs: dict[str, ArraySpec] = {}
        self._lengths: dict[str, int] = {}
        # Rows in the last chunk of each array, which an append writes again.
        self._tails: dict[str, Array] = {}
        self._writes: dict[tuple[str, int], PendingRows] = {}  # by array and first row
        self._committed: dict[str, object] = {}  # metadata documents by path
        self._removed: set[str] = set()
        self._widened: dict[str, slice] = {}  # new columns by array

    def declare(self, arrays: Mapping[str, ArraySpec]) -> None:
        """Add empty arrays."""
        for name, spec in arrays.items():
            self._specs[name] = spec
            self._lengths[name] = 0
            self._tails[name] = np.empty((0, *spec.inner), spec.dtype)

    def continue_from(
        self, arrays: Mapping[str, ArraySpec], lengths: Mapping[str, int]
    ) -> None:
        """Add arrays of the store; new rows of an array follow its first ``lengths[name]`` rows."""
        assert not self._writes
        self._specs |= arrays
        self._lengths |= lengths
        for name in lengths:
            self._tails.pop(name, None)

    def remove(self, name: str) -> None:
        """Remove an array from the store."""
        del self._specs[name], self._lengths[name]
        self._removed.add(name)

    def read(self, name: str, rows: slice) -> Array:
        """Read committed rows of an array; a damaged chunk raises a ChunkError."""
        return self._loop.run(self._read(name, rows))

    def widen(self, name: str, size: int) -> None:
        """Enlarge the second dimension of an array; new columns read as NaN."""
        assert not any(waiting == name for waiting, _ in self._writes)
        spec, tail = self._specs[name], self._tail(name)
        first = self._widened.get(name, slice(spec.inner[0], None)).start
        self._widened[name] = slice(first, size)
        self._specs[name] = replace(spec, inner=(size, *spec.inner[1:]))
        wider = np.full((len(tail), size, *spec.inner[1:]), np.nan, spec.dtype)
        wider[:, : tail.shape[1]] = tail
        self._tails[name] = wider

    def append(self, rows: Mapping[str, Array]) -> None:
        """Append rows to the named arrays."""
        for name, new in rows.items():
            before = self._tail(name)
            tail = np.concatenate([before, new])
            start = self._lengths[name] - len(before)
            self._lengths[name] += len(new)
            self._writes[name, start] = _rows(tail)
            # Keep the last chunk even if it is full: its last row may be amended.
            keep = max(len(tail) - 1, 0) // self._specs[name].chunk[0]
            self._tails[name] = tail[keep * self._specs[name].chunk[0] :]

    def append_large(self, name: str, row: Array) -> None:
        """Append a row, without keeping a copy, to an array whose chunks hold one row."""
        self._writes[name, self._lengths[name]] = _rows(row[None])
        self._lengths[name] += 1

    def amend_last(self, name: str, columns: Mapping[int, float]) -> None:
        """Overwrite columns of the last row of a two-dimensional array."""
        assert self._lengths[name] > 0
        tail = self._tail(name).copy()
        tail[-1, list(columns)] = list(columns.values())
        self._writes[name, self._lengths[name] - len(tail)] = _rows(tail)
        self._tails[name] = tail

    def write_vector(
        self, name: str, spec: ArraySpec, size: int, read: Callable[[slice], Array]
    ) -> None:
        """Add a one-dimensional array to the next commit, which calls `read` for its parts."""
        self._specs[name] = spec
        self._lengths[name] = size
        self._writes[name, 0] = PendingRows((size,), lambda index: read(index[0]))

    def commit(self, attributes: Mapping[str, object]) -> None:
        """Write everything that was collected, then make it and the attributes visible."""
        self._loop.run(self._commit(group_metadata(attributes)))
        self._writes.clear()
        for name in self._removed:
            self._loop.run(self._store.delete_dir(name))
        self._removed.clear()

    def read_tails(self, names: Iterable[str]) -> None:
        """Read the chunks that later appends need, now; raise if one of them is damaged."""
        for name in names:
            self._tail(name)

    def _tail(self, name: str) -> Array:
        """Return the rows of the last chunk of an array, read from the store if necessary."""
        if name not in self._tails:
            length, rows = self._lengths[name], self._specs[name].chunk[0]
            start = max(length - 1, 0) // rows * rows
            try:
                self._tails[name] = self.read(name, slice(start, length))
            except ChunkError as error:
                advice = "`traj-store verify` lists all damage."
                raise ValueError(f"{error}. {advice}") from error
        return self._tails[name]

    async def _commit(self, root: dict[str, object]) -> None:
        for name, columns in self._widened.items():
            await self._fill(name, columns)
        self._widened.clear()
        for (name, start), rows in self._writes.items():
            await self._write(name, start, rows)
        groups = {name.rpartition("/")[0] for name in self._specs} - {""}
        documents: dict[str, object] = {name: group_metadata({}) for name in groups}
        for name, spec in self._specs.items():
            documents[name] = _metadata(spec, self._lengths[name])
        for name, document in documents.items():
            if self._committed.get(name) != document:
                await self._put(f"{name}/zarr.json", document)
        self._committed = documents
        consolidated = {
            "kind": "inline",
            "must_understand": False,
            "metadata": documents,
        }
        await self._put("zarr.json", root | {"consolidated_metadata": consolidated})

    async def _write(self, name: str, start: int, rows: PendingRows) -> None:
        # If the shape ends with the new rows, Zarr does not read before it writes.
        array = self._array(name, start + rows.shape[0], self._store)
        # Write one chunk at a time; Zarr would otherwise hold copies of all chunks.
        chunk = self._specs[name].chunk[:2]
        for part in product(*map(_slices, rows.shape[:2], chunk)):
            place = slice(start + part[0].start, start + part[0].stop)
            await array.setitem((place, *part[1:]), rows.read(part))

    async def _fill(self, name: str, columns: slice) -> None:
        """Fill new columns with NaN, in all rows before the last chunk."""
        end = self._lengths[name] - len(self._tails[name])
        array = self._array(name, end, self._store)
        for rows in _slices(end, self._specs[name].chunk[0]):
            await array.setitem((rows, columns), np.nan)

    async def _read(self, name: str, rows: slice) -> Array:
        checked = CheckedStore(self._store, {name: chunk_size(self._specs[name])})
        array = self._array(name, self._lengths[name], checked)
        with naming_damage(name):
            return np.array(await array.getitem(rows))

    def _array(self, name: str, length: int, store: Store) -> AsyncArray[Any]:
        metadata: Any = _metadata(self._specs[name], length)
        return AsyncArray(
            metadata, StorePath(store, name), config={"write_empty_chunks": True}
        )

    async def _put(self, key: str, document: object) -> None:
        buffer = default_buffer_prototype().buffer
        await self._store.set(key, buffer.from_bytes(json.dumps(document).encode()))


def _metadata(spec: ArraySpec, length: int) -> dict[str, object]:
    """Return the metadata document of an array with `length` rows."""
    return _empty_metadata(spec) | {"shape": [length, *spec.inner]}


@lru_cache(maxsize=1024)
def _empty_metadata(spec: ArraySpec) -> dict[str, object]:
    return spec.metadata(0)


def _rows(values: Array) -> PendingRows:
    return PendingRows(values.shape, values.__getitem__)


def _slices(size: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]
