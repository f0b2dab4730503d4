"""Wrap stored rows as arrays that xarray reads when they are used."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from xarray.backends import BackendArray
from xarray.core import indexing

Array = npt.NDArray[Any]


class Rows(Protocol):
    """Source of rows, such as `trajstore.reading.stored_rows.StoredRows`."""

    def array(self, name: str) -> Any:
        """Return an array of the store."""

    def rows(self, name: str, rows: slice) -> Array:
        """Read rows of an array."""

    def dtype(self, name: str) -> Any:
        """Return the type of the rows of an array."""


def lazy_rows(rows: Rows, name: str) -> indexing.LazilyIndexedArray:
    """Wrap an array for a lazy `xarray.Variable`."""
    return indexing.LazilyIndexedArray(_LazyRows(rows, name))


class _LazyRows(BackendArray):
    """A stored array with the interface that xarray requires of lazy variables."""

    def __init__(self, rows: Rows, name: str) -> None:
        array = rows.array(name)
        self._rows = rows
        self._name = name
        self._chunk = array.chunks[0]
        self.shape = array.shape
        self.dtype = rows.dtype(name)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Array:
        values: Array = indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )
        return values

    def _read(self, key: tuple[Any, ...]) -> Array:
        """Read one chunk at a time, and keep only the requested columns."""
        rows, *columns = key
        wanted = np.arange(self.shape[0])[rows]
        if wanted.ndim == 0:
            row = self._rows.rows(self._name, slice(int(wanted), int(wanted) + 1))[0]
            return _outer(row, columns)
        chunk_of = wanted // self._chunk
        out: Array | None = None
        for chunk in np.unique(chunk_of):
            in_chunk = chunk_of == chunk
            first = int(chunk) * self._chunk
            last = min(first + self._chunk, self.shape[0])
            part = self._rows.rows(self._name, slice(first, last))
            values = _outer(part[wanted[in_chunk] - first], [slice(None), *columns])
            if out is None:
                out = np.empty((len(wanted), *values.shape[1:]), self.dtype)
            out[in_chunk] = values
        if out is None:
            nothing = np.empty((0, *self.shape[1:]), self.dtype)
            return _outer(nothing, [slice(None), *columns])
        return out


def _outer(values: Array, key: list[Any]) -> Array:
    """Index each axis separately; an integer drops its axis."""
    for axis in reversed(range(len(key))):
        values = values[(slice(None),) * axis + (key[axis],)]
    return values
