"""Test that stored results are checked before they are read, whatever they contain."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from numcodecs import Zstd  # type: ignore[import-untyped]

from tests.trajstore.handmade import write_run
from tests.trajstore.store.test_chunks import (
    PACKED,
    make_a_pipe,
    make_huge,
    pack_a_bomb,
)
from trajstore import open_run
from trajstore.format.run_spec import SchemaError
from trajstore.reading.results import write_results
from trajstore.reading.stored_results import (
    ExpectedArray,
    open_arrays,
    read_attributes,
)
from trajstore.store.chunks import ChunkError, read_chunk
from trajstore.store.location import open_store

VALUES = np.random.default_rng(0).standard_normal(100)
WHOLE = (slice(0, 100),)


@pytest.fixture
def location(tmp_path: Path) -> Path:
    """Results of the present version: the array x in the group a."""
    write_run(tmp_path / "run.zarr", n_steps=4)
    result = xr.Dataset({"x": ("step", VALUES)}, attrs={"computed_from": "text"})
    write_results(open_run(tmp_path / "run.zarr"), "a", result)
    return tmp_path / "run.analysis.zarr"


@pytest.fixture
def earlier(location: Path) -> Path:
    """Results of an earlier version, without checksums."""
    result = xr.Dataset({"x": ("step", VALUES)}, attrs={"computed_from": "text"})
    result.to_zarr(open_store(str(location)), group="a", mode="w", consolidated=False)
    return location


def opened(location: Path, **changes: Any) -> Any:
    expected = ExpectedArray((100,))._replace(**changes)
    arrays = open_arrays(str(location), "a", {"x": expected})
    return arrays and arrays["x"]


@pytest.mark.parametrize("fixture", ["location", "earlier"])
def test_results_are_read_back(fixture: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(fixture)
    np.testing.assert_array_equal(read_chunk(opened(path), WHOLE), VALUES)
    attributes = dict(read_attributes(str(path), "a") or {})
    assert ("x" in attributes.pop("checks", {})) == (fixture == "location")
    assert attributes == {"computed_from": "text"}


def test_absent_results_are_none(location: Path):
    assert read_attributes(f"{location}.absent", "a") is None
    assert read_attributes(str(location), "b") is None
    assert open_arrays(str(location), "a", {"y": ExpectedArray(())}) is None


def regular(*chunk: Any) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(chunk)}}


CHANGES: dict[str, tuple[str, Any]] = {
    "more rows": ("shape", [1 << 40]),
    "another type": ("data_type", "string"),
    "larger chunks": ("chunk_grid", regular(1 << 30)),
    "empty chunks": ("chunk_grid", regular(0)),
    "true chunks": ("chunk_grid", regular(True)),
    "another grid": ("chunk_grid", {"name": "rectilinear"}),
    "another codec": ("codecs", [{"name": "numcodecs.pickle"}]),
    "a codec twice": ("codecs", [{"name": "bytes"}, *2 * [{"name": "zstd"}]]),
    "a codec without a name": ("codecs", 7),
    "other keys": ("chunk_key_encoding", {"name": "v2"}),
    "a fill value": ("fill_value", 1.0),
    "transformers": ("storage_transformers", [{"name": "x"}]),
    "version 2": ("zarr_format", 2),
}


@pytest.mark.parametrize(("key", "value"), CHANGES.values(), ids=CHANGES)
def test_unknown_documents_are_refused(location: Path, key: str, value: object):
    file = location / "a/x/zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(
        SchemaError, match=rf"run\.analysis\.zarr/a: x: {key}: expected"
    ):
        opened(location)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda file: file.write_text("{"), "is truncated or damaged"),
        (lambda file: file.write_text("[" * 100_000), "is truncated or damaged"),
        (make_a_pipe, "is not a file"),
        (make_huge, "is longer than"),
    ],
    ids=["text", "nested", "pipe", "huge"],
)
def test_damaged_documents_are_refused(
    location: Path, damage: Callable[[Path], None], text: str
):
    damage(location / "a/x/zarr.json")
    with pytest.raises(SchemaError, match=f"a/x/zarr.json {text}"):
        opened(location)
    damage(location / "a/zarr.json")
    with pytest.raises(SchemaError, match=f"a/zarr.json {text}"):
        read_attributes(str(location), "a")


def lead_out(file: Path) -> None:
    outside = file.parents[4] / "outside"
    file.rename(outside)
    file.symlink_to(outside)


def lead_directory_out(file: Path) -> None:
    outside = file.parents[4] / "outside"
    file.parent.rename(outside)
    file.parent.symlink_to(outside)


DAMAGES = {
    **{k: v for k, v in PACKED.items() if k not in {"bomb", "spoilt"}},
    "bomb": (pack_a_bomb, "is longer than the 820 bytes it may have"),
    "link": (lead_out, "leads through a link"),
    "linked directory": (lead_directory_out, "leads through a link"),
}


@pytest.mark.parametrize(("damage", "text"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_chunks_are_not_read(
    location: Path, damage: Callable[[Path], None], text: str
):
    damage(location / "a/x/c/0")
    array = opened(location)
    with pytest.raises(ChunkError, match=f"chunk a/x/c/0 {text}"):
        read_chunk(array, WHOLE)


def test_every_flipped_bit_is_noticed(location: Path):
    file, array = location / "a/x/c/0", opened(location)
    intact = file.read_bytes()
    for i in range(0, 8 * len(intact), 61):
        data = bytearray(intact)
        data[i // 8] ^= 1 << i % 8
        file.write_bytes(data)
        with pytest.raises(ChunkError, match="chunk a/x/c/0"):
            read_chunk(array, WHOLE)


@pytest.mark.parametrize("n", [0, 99, 101, 300, 70_000, 1 << 25])
def test_a_chunk_without_checksum_is_unpacked_only_to_its_size(earlier: Path, n: int):
    packed = Zstd().encode(np.zeros(n))
    (earlier / "a/x/c/0").write_bytes(packed)
    with pytest.raises(ChunkError, match=r"claims to unpack to|is longer than"):
        read_chunk(opened(earlier), WHOLE)


@pytest.mark.parametrize("n", [1, 30, 100, 10_000, 100_000])
def test_chunks_without_checksums_are_read_in_every_size(location: Path, n: int):
    """The size in a Zstandard header takes 1, 2, 4 or 8 bytes."""
    result = xr.Dataset({"x": ("step", np.arange(float(n)))})
    store = open_store(str(location))
    result.to_zarr(
        store,
        group="a",
        mode="w",
        consolidated=False,
        encoding={"x": {"chunks": (n,)}},
    )
    array = opened(location, shape=(n,))
    np.testing.assert_array_equal(read_chunk(array, (slice(0, n),)), np.arange(n))


def test_damage_without_checksum_is_never_more_than_wrong(earlier: Path):
    file, array = earlier / "a/x/c/0", opened(earlier)
    intact = file.read_bytes()
    for i in range(0, min(8 * len(intact), 3000), 7):
        data = bytearray(intact)
        data[i // 8] ^= 1 << i % 8
        file.write_bytes(data)
        try:
            assert read_chunk(array, WHOLE).shape == (100,)
        except ChunkError:
            continue


def test_every_chunk_of_a_result_is_written(tmp_path: Path):
    """Otherwise a missing chunk could not be told from a chunk of fill values."""
    write_run(tmp_path / "run.zarr", n_steps=4)
    text = np.array(["é"], object)
    empty = xr.Dataset(
        {"x": ("step", np.full(100, np.nan)), "y": 0.0, "s": ("i", text)}
    )
    write_results(open_run(tmp_path / "run.zarr"), "a", empty)
    group: Any = zarr.open_group(tmp_path / "run.analysis.zarr/a", mode="r")
    for name in "xys":
        assert group[name].nchunks_initialized == 1
        assert group[name].metadata.to_dict()["codecs"][-1] == {"name": "crc32c"}


@pytest.mark.parametrize("text", ["[]", "{", '{"node_type": "array"}'])
def test_another_root_document_is_not_written_to(
    location: Path, tmp_path: Path, text: str
):
    (location / "zarr.json").write_text(text)
    with pytest.raises(SchemaError, match=r"is not a store of results|is truncated"):
        write_results(open_run(tmp_path / "run.zarr"), "a", xr.Dataset({"x": 1.0}))


def test_a_piped_root_document_does_not_hang(location: Path, tmp_path: Path):
    (location / "zarr.json").unlink()
    os.mkfifo(location / "zarr.json")
    with pytest.raises(SchemaError, match=r"zarr\.json is not a file"):
        write_results(open_run(tmp_path / "run.zarr"), "a", xr.Dataset({"x": 1.0}))
