"""Grow a Zarr store so that a reader sees all of a commit or nothing of it.

A commit writes chunks, then the metadata of the arrays, and last the metadata of the root
group, one small document that is replaced atomically. It holds the consolidated metadata
of all arrays, and so their shapes: rows beyond are invisible, whatever is on disk.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from zarr import AsyncArray
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.storage import StorePath

from trajstore.format.arrays import ArraySpec, group_metadata
from trajstore.store.event_loop import EventLoop

Array = npt.NDArray[Any]


class Rows(NamedTuple):
    """Values that wait to be written.

    Attributes
    ----------
    shape : tuple of int
        Their shape.
    read : callable
        Takes one slice for each of the first two dimensions, or for the only one;
        returns that part, an array.
    """

    shape: tuple[int, ...]
    read: Callable[[Any], Array]


class Commits:
    """The one writer of a store; not thread-safe.

    Writes are collected, and reach the store in `commit`.

    Parameters
    ----------
    store : zarr.abc.store.Store
        Where to write.
    loop : EventLoop
        Runs what the store does.
    """

    def __init__(self, store: Store, loop: EventLoop) -> None:
        self._store, self._loop = store, loop
        self._specs: dict[str, ArraySpec] = {}
        self._lengths: dict[str, int] = {}
        # Rows of the last chunk of each array, which is written anew when it grows.
        self._tails: dict[str, Array] = {}
        self._writes: dict[tuple[str, int], Rows] = {}
        self._published: dict[str, object] = {}
        self._removed: set[str] = set()
        self._widened: dict[str, slice] = {}

    def declare(self, arrays: Mapping[str, ArraySpec]) -> None:
        """Add empty arrays."""
        for name, spec in arrays.items():
            self._specs[name] = spec
            self._lengths[name] = 0
            self._tails[name] = np.empty((0, *spec.inner), spec.dtype)

    def continue_from(
        self, arrays: Mapping[str, ArraySpec], lengths: Mapping[str, int]
    ) -> None:
        """Add arrays that are in the store already.

        Parameters
        ----------
        arrays : mapping from str to ArraySpec
            By name.
        lengths : mapping from str to int
            How many of their rows are kept; the next ones overwrite those behind.
        """
        assert not self._writes
        self._specs |= arrays
        self._lengths |= lengths
        for name in lengths:
            self._tails.pop(name, None)

    def remove(self, name: str) -> None:
        """Take an array out of the store."""
        del self._specs[name], self._lengths[name]
        self._removed.add(name)

    def read(self, name: str, rows: slice) -> Array:
        """Read rows of an array that were committed."""
        return self._loop.run(self._read(name, rows))

    def widen(self, name: str, size: int) -> None:
        """Set the second dimension of an array; what is new reads as NaN."""
        assert not any(waiting == name for waiting, _ in self._writes)
        spec, tail = self._specs[name], self._tail(name)
        first = self._widened.get(name, slice(spec.inner[0], None)).start
        self._widened[name] = slice(first, size)
        self._specs[name] = replace(spec, inner=(size, *spec.inner[1:]))
        wider = np.full((len(tail), size, *spec.inner[1:]), np.nan, spec.dtype)
        wider[:, : tail.shape[1]] = tail
        self._tails[name] = wider

    def append(self, rows: Mapping[str, Array]) -> None:
        """Write rows behind those of the named arrays."""
        for name, new in rows.items():
            before = self._tail(name)
            tail = np.concatenate([before, new])
            start = self._lengths[name] - len(before)
            self._lengths[name] += len(new)
            self._writes[name, start] = _rows(tail)
            # The last chunk is kept even if complete: its last row may be amended.
            keep = max(len(tail) - 1, 0) // self._specs[name].chunk[0]
            self._tails[name] = tail[keep * self._specs[name].chunk[0] :]

    def append_large(self, name: str, row: Array) -> None:
        """Write a row of an array with chunks for every row, which keeps no copy."""
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
        """Write a whole one-dimensional array, read part by part in `commit`."""
        self._specs[name] = spec
        self._lengths[name] = size
        self._writes[name, 0] = Rows((size,), lambda index: read(index[0]))

    def commit(self, attributes: Mapping[str, object]) -> None:
        """Write all that was collected, then make it visible.

        Parameters
        ----------
        attributes : mapping
            New attributes of the root, serialisable to JSON.
        """
        self._loop.run(self._commit(group_metadata(attributes)))
        self._writes.clear()
        for name in self._removed:
            self._loop.run(self._store.delete_dir(name))
        self._removed.clear()

    def _tail(self, name: str) -> Array:
        """Return the rows of the last chunk of an array, from the store at first."""
        if name not in self._tails:
            length, rows = self._lengths[name], self._specs[name].chunk[0]
            start = max(length - 1, 0) // rows * rows
            self._check_presence(name, start // rows)
            self._tails[name] = self.read(name, slice(start, length))
        return self._tails[name]

    def _check_presence(self, name: str, row_of_chunks: int) -> None:
        """Raise an error if numbers that cannot be NaN are missing in the store."""
        spec = self._specs[name]
        if spec.dtype.startswith("float") or self._lengths[name] == 0:
            return
        counts = [-(-n // m) for n, m in zip(spec.inner, spec.chunk[1:], strict=True)]
        for place in product([row_of_chunks], *map(range, counts)):
            key = "/".join([name, "c", *map(str, place)])
            if not self._loop.run(self._store.exists(key)):
                raise ValueError(
                    f"The chunk {key!r} is missing in the store, so that nothing can be "
                    "appended to it. `traj-store verify` lists what else is damaged."
                )

    async def _commit(self, root: dict[str, object]) -> None:
        for name, columns in self._widened.items():
            await self._fill(name, columns)
        self._widened.clear()
        for (name, start), rows in self._writes.items():
            await self._write(name, start, rows)
        groups = {name.rpartition("/")[0] for name in self._specs} - {""}
        documents: dict[str, object] = {name: group_metadata({}) for name in groups}
        for name, spec in self._specs.items():
            documents[name] = spec.metadata(self._lengths[name])
        for name, document in documents.items():
            if self._published.get(name) != document:
                await self._put(f"{name}/zarr.json", document)
        self._published = documents
        consolidated = {
            "kind": "inline",
            "must_understand": False,
            "metadata": documents,
        }
        await self._put("zarr.json", root | {"consolidated_metadata": consolidated})

    async def _write(self, name: str, start: int, rows: Rows) -> None:
        # Where the shape ends with the new rows, Zarr writes without reading.
        array = self._array(name, start + rows.shape[0])
        # Chunk after chunk: Zarr would hold copies of all of them at once.
        chunk = self._specs[name].chunk[:2]
        for part in product(*map(_slices, rows.shape[:2], chunk)):
            place = slice(start + part[0].start, start + part[0].stop)
            await array.setitem((place, *part[1:]), rows.read(part))

    async def _fill(self, name: str, columns: slice) -> None:
        """Write columns that are new of rows before the last chunk, so none is missing."""
        end = self._lengths[name] - len(self._tails[name])
        array = self._array(name, end)
        for rows in _slices(end, self._specs[name].chunk[0]):
            await array.setitem((rows, columns), np.nan)

    async def _read(self, name: str, rows: slice) -> Array:
        return np.array(await self._array(name, self._lengths[name]).getitem(rows))

    def _array(self, name: str, length: int) -> AsyncArray[Any]:
        metadata: Any = self._specs[name].metadata(length)
        return AsyncArray(
            metadata, StorePath(self._store, name), config={"write_empty_chunks": True}
        )

    async def _put(self, key: str, document: object) -> None:
        buffer = default_buffer_prototype().buffer
        await self._store.set(key, buffer.from_bytes(json.dumps(document).encode()))


def _rows(values: Array) -> Rows:
    return Rows(values.shape, values.__getitem__)


def _slices(size: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]
