"""Append to the arrays of a Zarr store in commits that are atomic to readers.

A commit writes chunks, then the metadata of the arrays, and finally the metadata of the
root group: one small document, replaced atomically. The root document holds the
consolidated metadata of all arrays, including their shapes, and the checks of their chunks
(`trajstore.format.checks`). Rows beyond these shapes are invisible, even if they are on disk.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from zarr import AsyncArray
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.storage import StorePath

from trajstore.format.arrays import ArraySpec, group_metadata
from trajstore.format.checks import RootChecks, check_of, encoded, seal
from trajstore.format.chunk_size import chunk_size
from trajstore.store.chunks import (
    CheckedStore,
    ChunkChecks,
    ChunkError,
    naming_damage,
    whole_chunks,
)
from trajstore.store.encoding import encoded_chunk
from trajstore.store.event_loop import EventLoop
from trajstore.store.row_checks import RowChecks

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
        self.has_checks = (
            True  # False for stores of version 1, which are continued as such
        )
        self._checks: dict[str, RowChecks] = {}
        # Checks of vectors by array and first element, and arrays whose checks have changed.
        self._vector_checks: dict[str, dict[int, int]] = {}
        self._changed: set[str] = set()
        self._root: dict[str, Any] = {}  # the last root document
        self._specs: dict[str, ArraySpec] = {}
        self._lengths: dict[str, int] = {}
        # Rows in the last chunk of each array, which an append writes again.
        self._tails: dict[str, Array] = {}
        self._writes: dict[tuple[str, int], PendingRows] = {}  # by array and first row
        self._committed: dict[str, object] = {}  # metadata documents by path
        self._removed: set[str] = set()
        self._widened: dict[str, slice] = {}  # new columns by array

    @property
    def names(self) -> list[str]:
        """Paths of the arrays in the last commit."""
        return [name for name in self._committed if name in self._specs]

    def declare(self, arrays: Mapping[str, ArraySpec]) -> None:
        """Add empty arrays."""
        for name, spec in arrays.items():
            self._specs[name] = spec
            self._lengths[name] = 0
            self._tails[name] = np.empty((0, *spec.inner), spec.dtype)
            if self.has_checks:
                self._checks[name] = RowChecks(name, spec, self._load)

    def continue_from(
        self,
        arrays: Mapping[str, ArraySpec],
        lengths: Mapping[str, int],
        checks: RootChecks,
    ) -> None:
        """Add arrays of the store, with their lengths and checks in its root document."""
        self._specs |= arrays
        self._lengths |= lengths
        for name, spec in arrays.items():
            if (stored := checks.of(name)) is not None:
                self._checks[name] = RowChecks(name, spec, self._load, stored)

    def rewind(self, lengths: Mapping[str, int]) -> None:
        """Keep the first ``lengths[name]`` rows of each array; its new rows follow them."""
        assert not self._writes
        for name, length in lengths.items():
            start = length - length % self._specs[name].chunk[0]
            tail = self._read_or_advise(name, slice(start, length))
            self._lengths[name] = length
            self._tails.pop(name, None)
            if start < length:
                self._tails[name] = tail
            if self.has_checks:
                self._changing(name).rewind(length, tail)

    def has(self, name: str) -> bool:
        """Whether there is an array of this name, counting those that are not committed yet."""
        return name in self._specs

    def length(self, name: str) -> int:
        """Return the number of rows of an array, counting those that are not committed yet."""
        return self._lengths[name]

    def remove(self, name: str) -> None:
        """Remove an array from the store."""
        del self._specs[name], self._lengths[name]
        self._checks.pop(name, None)
        self._removed.add(name)

    def read(self, name: str, rows: slice) -> Array:
        """Read committed rows of an array; a damaged chunk raises a ChunkError."""
        assert not any(waiting == name for waiting, _ in self._writes)
        spec, length = self._specs[name], self._lengths[name]
        if rows.start == rows.stop:
            return np.empty((0, *spec.inner), spec.dtype)
        checked = CheckedStore(self._store, {name: chunk_size(spec)})
        array = self._array(name, length, checked)
        part = (rows, *(slice(0, n) for n in spec.inner))
        whole = whole_chunks(array, part)
        values = self._loop.run(_read(array, whole))
        if self.has_checks:
            lost: dict[str, ChunkError] = {}
            checks = ChunkChecks(array, self._checks[name].list, (), lost)
            checks.compare(whole, values)
            if lost:
                raise next(iter(lost.values()))
        first = whole[0].start
        return values[rows.start - first : rows.stop - first]

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
        if self.has_checks:
            self._changing(name).widen(self._specs[name])

    def append(self, rows: Mapping[str, Array]) -> None:
        """Append rows to the named arrays."""
        for name, new in rows.items():
            before = self._tail(name)
            tail = np.concatenate([before, new])
            if self.has_checks:
                self._changing(name).append(new)
            start = self._lengths[name] - len(before)
            self._lengths[name] += len(new)
            self._writes[name, start] = _rows(tail)
            # Keep the last chunk even if it is full: its last row may be amended.
            keep = max(len(tail) - 1, 0) // self._specs[name].chunk[0]
            self._tails[name] = tail[keep * self._specs[name].chunk[0] :]

    def append_large(self, name: str, row: Array) -> None:
        """Append a row, without keeping a copy, to an array whose chunks hold one row."""
        if self.has_checks:
            self._changing(name).append(row[None])
        self._writes[name, self._lengths[name]] = _rows(row[None])
        self._lengths[name] += 1

    def amend_last(self, name: str, columns: Mapping[int, float]) -> None:
        """Overwrite columns of the last row of a two-dimensional array."""
        assert self._lengths[name] > 0
        tail = self._tail(name).copy()
        tail[-1, list(columns)] = list(columns.values())
        self._writes[name, self._lengths[name] - len(tail)] = _rows(tail)
        self._tails[name] = tail
        if self.has_checks:
            self._changing(name).amend(tail)

    def write_vector(
        self, name: str, spec: ArraySpec, size: int, read: Callable[[slice], Array]
    ) -> None:
        """Add a one-dimensional array to the next commit, which calls `read` for its parts."""
        self._specs[name] = spec
        self._lengths[name] = size
        checks = self._vector_checks[name] = {}

        def read_and_check(index: tuple[slice]) -> Array:
            values = read(index[0])
            checks[index[0].start] = check_of(np.asarray(values, spec.dtype))
            return values

        self._writes[name, 0] = PendingRows((size,), read_and_check)

    def commit(self, attributes: Mapping[str, object]) -> None:
        """Write everything that was collected, then make it and the attributes visible."""
        self._loop.run(self._commit(group_metadata(attributes)))
        self._writes.clear()
        for name in self._removed:
            self._loop.run(self._store.delete_dir(name))
        self._removed.clear()

    def _changing(self, name: str) -> RowChecks:
        self._changed.add(name)
        return self._checks[name]

    def read_tails(self, names: Iterable[str]) -> None:
        """Read the chunks that later appends need, now; raise if one of them is damaged."""
        for name in names:
            self._tail(name)

    def _tail(self, name: str) -> Array:
        """Return the rows of the last chunk of an array, read from the store if necessary."""
        if name not in self._tails:
            length, rows = self._lengths[name], self._specs[name].chunk[0]
            start = max(length - 1, 0) // rows * rows
            self._tails[name] = self._read_or_advise(name, slice(start, length))
        return self._tails[name]

    def _read_or_advise(self, name: str, rows: slice) -> Array:
        try:
            return self.read(name, rows)
        except ChunkError as error:
            advice = "`traj-store verify` lists all damage."
            raise ValueError(f"{error}. {advice}") from error

    def _load(self, key: str) -> bytes:
        value = self._loop.run(self._store.get(key, default_buffer_prototype()))
        return b"" if value is None else value.to_bytes()

    async def _commit(self, root: dict[str, Any]) -> None:
        changed = [self._checks[name] for name in self._changed if name in self._checks]
        amended = {c.path: c.pending for c in changed if c.pending}
        if amended and self._root:
            # If the commit is not finished, the amended rows match this document.
            pending = {name: encoded(checks) for name, checks in amended.items()}
            attributes = self._root["attributes"] | {"pending_checks": pending}
            await self._put("zarr.json", seal(self._root | {"attributes": attributes}))
        for name, columns in self._widened.items():
            await self._fill(name, columns)
        self._widened.clear()
        for (name, start), rows in self._writes.items():
            await self._write(name, start, rows)
        await self._write_checks(changed)
        # Zarr opens consolidated metadata only if every group in it is in a group, too.
        parents = {
            str(path) for name in self._specs for path in PurePosixPath(name).parents
        }
        groups = sorted(parents - {"."})
        documents: dict[str, object] = {name: group_metadata({}) for name in groups}
        for name, spec in self._specs.items():
            documents[name] = _metadata(spec, self._lengths[name])
        for name, document in documents.items():
            if self._committed.get(name) != document:
                await self._put(f"{name}/zarr.json", json.dumps(document).encode())
        self._committed = documents
        consolidated = {
            "kind": "inline",
            "must_understand": False,
            "metadata": documents,
        }
        root |= {"consolidated_metadata": consolidated}
        if self.has_checks:
            texts = {name: checks.list.text() for name, checks in self._checks.items()}
            root["attributes"] = {**root["attributes"], "checks": texts}
            await self._put("zarr.json", seal(root))
        else:
            await self._put("zarr.json", json.dumps(root).encode())
        self._root = root
        for checks in changed:
            checks.committed()
        self._changed.clear()

    async def _write_checks(self, changed: list[RowChecks]) -> None:
        """Write the segments of checks that have become complete."""
        if not self.has_checks:
            return
        for name, checks in self._vector_checks.items():
            vector = self._checks[name] = RowChecks(name, self._specs[name], self._load)
            numbers = [checks[start] for start in sorted(checks)]
            vector.replace(numbers, self._lengths[name])
            changed.append(vector)
        self._vector_checks.clear()
        for rows in changed:
            for key, segment in rows.list.seal().items():
                await self._put(key, segment)

    async def _write(self, name: str, start: int, rows: PendingRows) -> None:
        # The rows begin with a chunk. One chunk at a time takes the memory of one.
        spec = self._specs[name]
        assert start % spec.chunk[0] == 0
        first = (start, *[0] * (len(spec.chunk) - 1))
        for part in product(*map(_slices, rows.shape[:2], spec.chunk)):
            starts = [s.start for s in part] + [0] * (len(spec.chunk) - len(part))
            numbers = np.add(first, starts) // spec.chunk
            key = "/".join([name, "c", *map(str, numbers.tolist())])
            values = rows.read(part)
            if values.size:
                await self._put(key, encoded_chunk(values, spec))

    async def _fill(self, name: str, columns: slice) -> None:
        """Fill new columns with NaN, in all rows before the last chunk."""
        end = self._lengths[name] - len(self._tails[name])
        array = self._array(name, end, self._store)
        for rows in _slices(end, self._specs[name].chunk[0]):
            await array.setitem((rows, columns), np.nan)

    def _array(self, name: str, length: int, store: Store) -> AsyncArray[Any]:
        metadata: Any = _metadata(self._specs[name], length)
        return AsyncArray(
            metadata, StorePath(store, name), config={"write_empty_chunks": True}
        )

    async def _put(self, key: str, text: bytes) -> None:
        buffer = default_buffer_prototype().buffer
        await self._store.set(key, buffer.from_bytes(text))


async def _read(array: AsyncArray[Any], part: tuple[slice, ...]) -> Array:
    with naming_damage(array.path):
        return np.array(await array.getitem(part))


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
