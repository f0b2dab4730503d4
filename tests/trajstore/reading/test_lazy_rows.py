"""Test that rows that xarray reads lazily equal the stored rows, for every selection."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from trajstore.reading.lazy_rows import lazy_rows

Array = npt.NDArray[Any]


class Stored(NamedTuple):
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]


class Table:
    """A table in chunks of a few rows, which notes the rows that are read."""

    def __init__(self, values: Array, chunk: int) -> None:
        self.values = values
        self.chunk = chunk
        self.read = list[slice]()

    def array(self, name: str) -> Stored:
        assert name == "tables"
        chunks = (self.chunk, *self.values.shape[1:])
        return Stored(self.values.shape, chunks, self.values.dtype)

    def rows(self, name: str, rows: slice) -> Array:
        assert name == "tables"
        self.read.append(rows)
        return self.values[rows]

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.array(name).dtype


VALUES = np.random.default_rng(0).random((23, 3, 2))


def lazy(chunk: int, values: Array = VALUES) -> tuple[Table, xr.Variable]:
    table = Table(values, chunk)
    dims = ("step", "layer", "basis")[: values.ndim]
    return table, xr.Variable(dims, lazy_rows(table, "tables"))


def slices(size: int) -> st.SearchStrategy[slice]:
    # xarray itself fails for empty slices with a negative step.
    return st.slices(size).filter(lambda s: s.step is None or s.step > 0)


def positions(size: int) -> st.SearchStrategy[Any]:
    numbers = st.integers(-size, size - 1)
    return st.one_of(numbers, slices(size), st.lists(numbers))


@given(
    chunk=st.integers(1, 30),
    keys=st.tuples(positions(23), positions(3), positions(2)),
    again=slices(5),
)
def test_selected_values_equal_the_stored_values(
    chunk: int, keys: tuple[Any, ...], again: slice
):
    _, variable = lazy(chunk)
    loaded = xr.Variable(variable.dims, VALUES)
    key = dict(zip(variable.dims, keys, strict=True))
    expected, found = loaded.isel(key), variable.isel(key)
    if expected.dims:
        further = {expected.dims[0]: again}
        expected, found = expected.isel(further), found.isel(further)
    np.testing.assert_array_equal(found.values, expected.values, strict=True)


def test_a_table_without_rows_is_not_read():
    table, variable = lazy(4, VALUES[:0])
    assert variable.isel(layer=1).values.shape == (0, 2)
    assert table.read == []


@pytest.mark.parametrize(
    ("rows", "read"),
    [
        (slice(5, 7), [slice(4, 8)]),
        (slice(7, 9), [slice(4, 8), slice(8, 12)]),
        ([22, 0], [slice(0, 4), slice(20, 23)]),
    ],
)
def test_only_requested_chunks_are_read(rows: Any, read: list[slice]):
    table, variable = lazy(4)
    _ = variable.isel(step=rows).values
    assert table.read == read
