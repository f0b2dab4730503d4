"""Test that Zarr can open the described arrays, and that their chunks are bounded."""

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trajstore.format.test_run_spec import VALID, specs
from trajstore.format.arrays import (
    CHUNK_BYTES,
    DERIVED_TABLE,
    ITEM_SIZE,
    MAX_CHUNK_ROWS,
    ArraySpec,
    step_arrays,
    table_columns,
    vector_array,
    window_arrays,
)
from trajstore.format.chunk_size import chunk_size
from trajstore.format.run_spec import RunSpec


def all_arrays(spec: RunSpec) -> dict[str, ArraySpec]:
    steps = step_arrays(spec, size=2048, n_metrics=32, n_blocks=1)
    windows = window_arrays(spec, size=2048, block=1024)
    return {**steps, **windows, "final": vector_array(2048)}


@settings(max_examples=50)
@given(spec=specs())
def test_the_columns_of_the_tables_follow_each_other(spec: RunSpec):
    columns = table_columns(spec)
    widths = [c.stop - c.start for c in columns.values()]
    assert [c.start for c in columns.values()] == [0, *np.cumsum(widths)[:-1]]
    assert columns["grad_dot_basis"].stop - columns["grad_dot_basis"].start == (
        spec.basis
    )
    arrays = step_arrays(spec, size=1024, n_metrics=32, n_blocks=1)
    assert arrays["tables"].inner == (len(spec.names), sum(widths))


def test_without_a_basis_no_product_with_the_anchor_has_a_column():
    columns = table_columns(RunSpec.from_json(VALID | {"basis": 0}))
    assert {name: c.start for name, c in columns.items() if c.start < c.stop} == {
        "grad_dot_previous": 0,
        "grad_sq": 1,
        "grad_dot_displacement": 2,
        "displacement_sq": 3,
        "update_sq": 4,
        "update_dot_displacement": 5,
    }
    assert not set(DERIVED_TABLE) & columns.keys()


def test_there_is_an_array_of_samples_only_if_they_are_recorded():
    arrays = {n: all_arrays(RunSpec.from_json(VALID | {"samples": n})) for n in (0, 5)}
    assert arrays[5].keys() - arrays[0].keys() == {"samples"}
    assert arrays[5]["samples"].inner == (5,)


@pytest.mark.parametrize("exact", [False, True], ids=["sketched", "exact"])
def test_zarr_opens_every_array_as_described(tmp_path: Path, exact: bool):
    rng = np.random.default_rng(0)
    for name, spec in all_arrays(RunSpec.from_json(VALID | {"exact": exact})).items():
        # The length of a vector is its first dimension.
        length = 2048 if name == "final" else 5
        path = tmp_path / name
        path.mkdir(parents=True)
        (path / "zarr.json").write_text(json.dumps(spec.metadata(length)))
        array = zarr.open_array(path, mode="r+")
        assert array.shape == (length, *spec.inner)
        assert array.dtype == spec.dtype
        assert array.chunks == spec.chunk
        assert array.metadata.to_dict()["dimension_names"] == spec.dims
        empty = np.nan if spec.dtype.startswith("float") else 0
        empty = -1 if name == "samples" else empty
        np.testing.assert_array_equal(array.fill_value, empty)
        np.testing.assert_array_equal(array[...], np.full(array.shape, empty))
        values = (100 * rng.random(array.shape)).astype(spec.dtype)
        array[...] = values
        np.testing.assert_array_equal(zarr.open_array(path, mode="r")[...], values)


@settings(max_examples=50)
@given(spec=specs(), size=st.integers(1, 1 << 15).map(lambda blocks: 1024 * blocks))
def test_chunks_hold_as_many_whole_rows_as_the_target_size_allows(
    spec: RunSpec, size: int
):
    arrays = step_arrays(spec, size=size, n_metrics=32, n_blocks=1)
    for array in arrays.values():
        rows = array.chunk[0]
        row_bytes = ITEM_SIZE[array.dtype] * prod(array.inner)
        assert rows & (rows - 1) == 0
        assert rows <= MAX_CHUNK_ROWS
        assert rows == 1 or rows * row_bytes <= CHUNK_BYTES
        # Twice the number of rows would exceed a bound.
        assert 2 * rows > MAX_CHUNK_ROWS or 2 * rows * row_bytes > CHUNK_BYTES
        assert array.chunk[1:] == tuple(max(1, n) for n in array.inner)


@pytest.mark.parametrize("exact", [False, True], ids=["sketched", "exact"])
def test_the_size_of_a_chunk_is_bounded_by_its_shape(exact: bool):
    for array in all_arrays(RunSpec.from_json(VALID | {"exact": exact})).values():
        size, values = chunk_size(array), np.zeros(array.chunk, array.dtype)
        assert size.decoded == values.nbytes
        # The checksum has 4 bytes, and the header of Blosc always has 16.
        assert size.stored == values.nbytes + (4 if array.code == "none" else 20)
