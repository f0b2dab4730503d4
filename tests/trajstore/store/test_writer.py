"""Test that Zarr alone reads back the rows and vectors of a writer."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

import trajstore
from tests.trajstore.handmade import small_spec
from trajstore.format.arrays import METRIC_BLOCK, step_arrays
from trajstore.format.run_spec import RunSpec
from trajstore.store.writer import Window, Writer

Array = npt.NDArray[Any]

SIZE = 3 * 1024  # one tensor of two blocks and one of one block
SPEC = small_spec({"a": (1025,), "b": (2, 3)})


def random_rows(n: int) -> dict[str, Array]:
    rng = np.random.default_rng(n)
    arrays = step_arrays(SPEC, size=SIZE, n_metrics=METRIC_BLOCK, n_blocks=1)
    return {
        name: (100 * rng.random((n, *array.inner))).astype(array.dtype)
        for name, array in arrays.items()
        if name != "scalars"
    }


def random_window(start: int, *, keyframe: bool) -> Window:
    rng = np.random.default_rng(start)
    return Window(
        start=start,
        codes=rng.integers(-127, 128, SIZE, np.int8),
        scales=rng.random(SIZE // 1024, np.float32),
        weights=rng.random(2, np.float32),
        arrival=rng.random((2, 3), np.float32),
        probes=rng.random(8),
        keyframe=rng.random(SIZE, np.float32) if keyframe else None,
    )


def root(path: Path) -> dict[str, Any]:
    attributes: dict[str, Any] = json.loads((path / "zarr.json").read_bytes())
    return attributes["attributes"]  # type: ignore[no-any-return]


def array(path: Path, name: str) -> Array:
    group = zarr.open_group(path, mode="r", use_consolidated=True)
    return np.asarray(group[name][...])  # type: ignore[index]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.zarr"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    writer = Writer(path, SPEC)
    yield writer
    writer.close()


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_existing_files_are_not_overwritten(path: Path, kind: str):
    path.mkdir() if kind == "directory" else path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"run\.zarr exists already.*a new path"):
        Writer(path, SPEC)
    assert list(path.iterdir()) == [] if kind == "directory" else path.read_text()


def test_missing_parent_directories_are_created(tmp_path: Path):
    writer = Writer(tmp_path / "runs" / "today" / "run.zarr", SPEC)
    writer.commit()
    writer.close()
    assert root(tmp_path / "runs" / "today" / "run.zarr")["status"] == "running"


def test_the_root_describes_the_run(path: Path, writer: Writer):
    writer.commit()
    attributes = root(path)
    assert attributes.pop("created").endswith("+00:00")
    assert len(attributes.pop("checksum")) == 8
    assert "references/start" in attributes.pop("checks")
    assert attributes.pop("written_by") == f"trajstore {trajstore.__version__}"
    assert attributes == {
        "format": "trajstore",
        "format_version": 2,
        "status": "running",
        "spec": SPEC.to_json(),
        "attrs": {},
        "metrics": [],
        "measurements": {},
        "snapshots": {},
        "resumes": [],
    }


def test_rows_are_stored_as_given(path: Path, writer: Writer):
    first, second = random_rows(5), random_rows(2)
    writer.steps.append(first, [{}] * 5)
    writer.steps.append(second, [{}] * 2)
    writer.commit()
    for name in first:
        expected = np.concatenate([first[name], second[name]])
        np.testing.assert_array_equal(array(path, name), expected, strict=True)


def test_missing_scalars_are_nan(path: Path, writer: Writer):
    writer.steps.append(random_rows(2), [{"loss": 1.0}, {"lr": 2.0, "loss": 3.0}])
    writer.steps.append(random_rows(1), [{"late": 4.0}])
    writer.commit()
    assert root(path)["metrics"] == ["loss", "lr", "late"]
    table = array(path, "scalars")
    assert table.shape == (3, METRIC_BLOCK)
    nan = np.nan
    expected = [[1, nan, nan], [3, 2, nan], [nan, nan, 4]]
    np.testing.assert_array_equal(table[:, :3], expected)
    assert np.isnan(table[:, 3:]).all()


def test_the_table_of_scalars_grows_by_blocks_of_columns(path: Path, writer: Writer):
    for n_names, n_columns in [(32, 32), (33, 64), (64, 64), (100, 128)]:
        row = {f"s{i}": float(i) for i in range(n_names)}
        writer.steps.append(random_rows(1), [row])
        writer.commit()
        table = array(path, "scalars")
        assert table.shape[1] == n_columns
        np.testing.assert_array_equal(table[-1, :n_names], np.arange(n_names))
        assert np.isnan(table[-1, n_names:]).all()
    assert root(path)["metrics"] == [f"s{i}" for i in range(100)]
    assert np.isfinite(table).sum(1).tolist() == [32, 33, 64, 100]


def test_scalars_of_the_last_row_can_be_amended(path: Path, writer: Writer):
    writer.steps.append(random_rows(2), [{"loss": 1.0}, {"loss": 2.0}])
    writer.commit()
    many = {f"s{i}": float(i) for i in range(40)}
    writer.steps.amend_last({"loss": -1.0, **many})
    writer.commit()
    table = array(path, "scalars")
    assert table[:, 0].tolist() == [1, -1]
    np.testing.assert_array_equal(table[1, 1:41], np.arange(40))
    assert np.isnan(table[0, 1:]).all()


def test_windows_are_stored_as_given(path: Path, writer: Writer):
    windows = [random_window(10 * c, keyframe=c == 0) for c in range(3)]
    for window in windows:
        writer.append_window(window)
    writer.commit()
    assert windows[0].keyframe is not None
    expected = {
        "start": [0, 10, 20],
        "keyframes": windows[0].keyframe[None],
        **{
            name: np.stack([getattr(window, name) for window in windows])
            for name in ("codes", "scales", "weights", "arrival", "probes")
        },
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(array(path, f"references/{name}"), values)


def test_snapshots_and_the_final_parameters_are_stored(path: Path, writer: Writer):
    vectors = np.random.default_rng(0).random((3, SIZE), np.float32)
    writer.write_snapshot("warm / up", 3, vectors[0].__getitem__)
    writer.write_snapshot("later", 9, vectors[1].__getitem__)
    writer.write_final(vectors[2].__getitem__, status="complete")
    writer.commit()
    attributes = root(path)
    assert attributes["status"] == "complete"
    assert list(attributes["snapshots"]) == ["warm / up", "later"]
    for name, step, vector in [
        ("warm / up", 3, vectors[0]),
        ("later", 9, vectors[1]),
    ]:
        stored = attributes["snapshots"][name]
        assert stored["step"] == step
        np.testing.assert_array_equal(array(path, stored["array"]), vector, strict=True)
    np.testing.assert_array_equal(array(path, "final"), vectors[2], strict=True)


def test_closing_removes_the_lock(path: Path):
    writer = Writer(path, SPEC)
    assert (path / ".lock").exists()
    writer.close()
    writer.close()
    assert not (path / ".lock").exists()


def test_exact_rows_hold_whole_vectors(path: Path):
    spec = RunSpec.from_json(SPEC.to_json() | {"exact": True})
    writer = Writer(path, spec)
    arrays = step_arrays(spec, size=SIZE, n_metrics=METRIC_BLOCK, n_blocks=1)
    rows = {
        name: np.ones((2, *a.inner), a.dtype)
        for name, a in arrays.items()
        if name != "scalars"
    }
    rows["gradient"] = np.random.default_rng(0).random((2, SIZE), np.float32)
    writer.steps.append(rows, [{}, {}])
    window = random_window(0, keyframe=True)._replace(probes=np.empty(0))
    writer.append_window(window)
    writer.commit()
    writer.close()
    np.testing.assert_array_equal(array(path, "gradient"), rows["gradient"])
    assert array(path, "references/probes").shape == (1, 0)
    assert not (path / "signs").exists()


def test_writing_and_reading_import_no_torch():
    modules = "trajstore.store.writer, trajstore.reading.run, trajstore.reading.target"
    code = f"import sys, {modules}, trajstore.cli.main; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"
