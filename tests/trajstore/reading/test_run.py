"""Test that a run reads back as it was written, and that anything else is refused."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr
from zarr.storage import LocalStore

from tests.trajstore.handmade import (
    EXACT,
    SIZE,
    SPEC,
    change_root_of,
    random_rows,
    random_window,
    write_run,
)
from trajstore import open_run
from trajstore.format.arrays import DESCRIPTIONS, table_columns
from trajstore.format.run_spec import RunSpec, SchemaError
from trajstore.reading.run import Run
from trajstore.store.writer import Writer

Array = npt.NDArray[Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.zarr"


@pytest.fixture(scope="module")
def ten_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a complete run of ten steps, which tests must not change."""
    path = tmp_path_factory.mktemp("ten") / "run.zarr"
    write_run(path, n_steps=10)
    return path


# Contents


@pytest.mark.parametrize("spec", [SPEC, EXACT], ids=["sketched", "exact"])
def test_rows_read_back_as_they_were_written(path: Path, spec: RunSpec):
    write_run(path, n_steps=10, spec=spec)
    run = open_run(path)
    for name, values in random_rows(0, 10, spec).items():
        np.testing.assert_array_equal(run.stored.array(name)[...], values, strict=True)
    assert run.spec == spec
    assert (run.n_steps, run.n_windows, run.n_epochs) == (10, 10, 3)


def test_the_repr_of_a_run_describes_it(ten_steps: Path):
    assert repr(open_run(str(ten_steps))) == (
        f"<trajstore.Run {str(ten_steps)!r}: 10 steps, 3007 parameters, complete>"
    )


def test_a_run_has_few_public_members():
    members = {name for name in dir(Run) if not name.startswith("_")} | {"stored"}
    assert members == {
        *("location", "status", "spec", "layout", "attrs"),
        *("n_steps", "n_epochs", "n_windows", "has_final"),
        *("metrics", "snapshots", "measurements", "measured", "group"),
        *("steps", "samples", "windows", "stored", "refresh"),
    }


def test_the_repr_of_a_measurement_describes_it(path: Path):
    write_run(path, n_steps=3, n_measured=2)
    measured = open_run(path).measured("other")
    assert (measured.group.name, measured.metrics) == ("other", ["note"])
    assert repr(measured) == (
        f"<trajstore.Run {str(path)!r}, measurement 'other': 2 rows>"
    )
    with pytest.raises(KeyError, match=r"No measurement 'some' in .* has \['other'\]"):
        measured.measured("some")


def test_steps_have_a_variable_for_every_scalar_and_table(ten_steps: Path):
    steps = open_run(ten_steps).steps
    tables, rows = table_columns(SPEC), random_rows(0, 10)
    assert set(steps.data_vars) == {"loss", *tables}
    assert dict(steps.sizes) == {"step": 10, "layer": 2, "basis": 2}
    np.testing.assert_array_equal(steps["loss"], -np.arange(10.0))
    assert steps["loss"].dims == ("step",)
    assert steps["loss"].dtype == np.float64
    for name, columns in tables.items():
        is_basis = name.endswith("_basis")
        expected = rows["tables"][..., columns if is_basis else columns.start]
        assert steps[name].dims == ("step", "layer", "basis")[: expected.ndim]
        np.testing.assert_array_equal(steps[name].values, expected, strict=True)


def test_steps_are_labelled_by_step_epoch_iteration_window_and_layer(ten_steps: Path):
    steps = open_run(ten_steps).steps
    assert set(steps.coords) == {"step", "epoch", "iteration", "window", "layer"}
    assert steps["layer"].values.tolist() == list(SPEC.names)
    np.testing.assert_array_equal(steps["step"], np.arange(10))
    for name in ("epoch", "iteration", "window"):
        assert steps[name].dims == ("step",)
        np.testing.assert_array_equal(steps[name], random_rows(0, 10)[name])
    means = steps["loss"].groupby("epoch").mean()
    np.testing.assert_allclose(means, [-1.5, -5.5, -8.5], rtol=1e-15)
    assert (
        steps["grad_sq"].sel(layer="bias", step=3)
        == (random_rows(0, 10)["tables"][3, 1, table_columns(SPEC)["grad_sq"].start])
    )


def test_steps_have_long_names_units_and_the_location_of_their_run(ten_steps: Path):
    steps = open_run(ten_steps).steps
    assert steps.attrs == {"status": "complete", "location": str(ten_steps)}
    assert steps["loss"].attrs == {"long_name": "loss", "units": "1"}
    for name in table_columns(SPEC):
        long_name, units = DESCRIPTIONS[name]
        assert steps[name].attrs == {"long_name": long_name, "units": units}


def test_every_recorded_quantity_is_described():
    assert set(table_columns(SPEC)) <= set(DESCRIPTIONS)


def test_the_wall_time_is_in_seconds(path: Path):
    writer = Writer(path, SPEC)
    writer.steps.append(random_rows(0, 1), [{"wall_time": 2.5}])
    writer.commit()
    writer.close()
    wall_time = open_run(path).steps["wall_time"]
    assert wall_time.values.tolist() == [2.5]
    assert wall_time.dtype == np.float64
    assert wall_time.attrs["units"] == "s"


def test_steps_are_read_when_they_are_used(
    ten_steps: Path, monkeypatch: pytest.MonkeyPatch
):
    read, whole = list[str](), zarr.Array.__getitem__

    def noting(self: Any, selection: Any) -> Any:
        read.append(self.path)
        return whole(self, selection)

    monkeypatch.setattr(zarr.Array, "__getitem__", noting)
    steps = open_run(ten_steps).steps
    part = steps[["loss", "grad_sq"]].isel(step=slice(3, 7))
    # Selecting epochs reads the coordinates.
    assert sorted(read) == ["epoch", "iteration"]
    np.testing.assert_array_equal(part["loss"].values, -np.arange(3.0, 7))
    assert sorted(read) == ["epoch", "iteration", "scalars"]
    _ = steps["window"].values
    assert sorted(read) == ["epoch", "iteration", "scalars", "window"]


SELECTIONS = {
    "number": 3,
    "last": -1,
    "slice": slice(2, 9, 3),
    "backwards": slice(8, 1, -2),
    "list": [7, 0, 3, 3],
    "nothing": slice(4, 4),
    "points": xr.DataArray([[0, 9], [4, 2]], dims=("a", "b")),
}


@pytest.mark.parametrize("rows", SELECTIONS.values(), ids=SELECTIONS)
def test_lazy_and_loaded_rows_are_selected_alike(path: Path, rows: Any):
    write_run(path, n_steps=20)
    run = open_run(path)
    lazy, loaded = run.steps, run.steps.compute()
    columns = {"layer": [1, 0], "basis": -1}
    for name in ("loss", "grad_sq", "grad_dot_basis", "window"):
        inner = {k: v for k, v in columns.items() if k in lazy[name].dims}
        xr.testing.assert_identical(
            lazy[name].isel(step=rows).isel(inner).compute(),
            loaded[name].isel(step=rows).isel(inner),
        )


def test_a_scalar_reads_as_nan_before_it_was_first_logged(path: Path):
    writer = Writer(path, SPEC)
    writer.steps.append(random_rows(0, 2), [{"loss": 1.0}, {"loss": 2.0}])
    writer.commit()
    early = open_run(path)
    many = {f"s{i}": float(i) for i in range(40)}
    writer.steps.append(random_rows(2, 1), [many])
    writer.steps.amend_last({"amended": 5.0})
    writer.commit()
    writer.close()
    steps = open_run(path).steps
    np.testing.assert_array_equal(steps["loss"], [1, 2, np.nan])
    np.testing.assert_array_equal(steps["amended"], [np.nan, np.nan, 5])
    for i in range(40):
        np.testing.assert_array_equal(steps[f"s{i}"], [np.nan, np.nan, i])
    np.testing.assert_array_equal(early.steps["loss"], [1, 2])
    assert "s0" not in early.steps


def test_windows_have_the_first_and_last_step(path: Path):
    writer = Writer(path, SPEC)
    for c, start in enumerate((0, 3, 4, 6)):
        writer.append_window(
            random_window(0)._replace(start=start, keyframe=random_window(c).keyframe)
        )
    writer.steps.append(random_rows(0, 6), [{}] * 6)
    writer.commit()
    writer.close()
    windows = open_run(path).windows
    assert windows["start"].values.tolist() == [0, 3, 4, 6]
    # The anchor of the last window exists before its first step.
    assert windows["stop"].values.tolist() == [3, 4, 6, 6]
    window = random_window(0)
    np.testing.assert_array_equal(windows["weights"], [window.weights] * 4)
    np.testing.assert_array_equal(windows["probes"], [window.probes] * 4)
    assert windows["weights"].dims == ("window", "layer")
    assert windows["layer"].values.tolist() == list(SPEC.names)
    # Only the windows that start at steps 0 and 4 start with an epoch.
    assert open_run(path).stored.epoch_windows == {0: 0, 1: 2}


def test_snapshots_and_the_final_iterate_read_back(path: Path):
    writer = Writer(path, SPEC)
    vectors = np.random.default_rng(0).random((2, SIZE), np.float32)
    writer.write_snapshot("warm", 3, vectors[0].__getitem__)
    writer.commit()
    assert not open_run(path).has_final
    writer.write_final(vectors[1].__getitem__, status="complete")
    writer.commit()
    writer.close()
    run = open_run(path)
    assert run.has_final
    assert run.snapshots == ("warm",)
    stored = run.stored.document.snapshots["warm"]
    assert stored.step == 3
    np.testing.assert_array_equal(run.stored.array(stored.array)[...], vectors[0])
    np.testing.assert_array_equal(run.stored.array("final")[...], vectors[1])


def test_a_run_without_steps_can_be_opened(path: Path):
    write_run(path, n_steps=0)
    run = open_run(path)
    assert (run.n_steps, run.n_epochs, run.n_windows) == (0, 0, 0)
    assert run.stored.epoch_windows == {}
    assert run.windows.sizes["window"] == 0
    assert run.steps.sizes["step"] == 0
    assert run.steps["grad_sq"].values.shape == (0, 2)
    assert run.steps["epoch"].values.shape == (0,)


# A run that is being written


def test_a_run_is_read_while_it_is_written(path: Path):
    writer, opened = Writer(path, SPEC), list[Run]()
    for k in range(4):
        writer.append_window(random_window(k))
        writer.steps.append(random_rows(k, 1), [{"loss": float(k), f"s{20 * k}": 0.0}])
        writer.commit()
        opened.append(open_run(path))
        assert opened[-1].status == "running"
    writer.write_final(np.zeros(SIZE, np.float32).__getitem__, status="complete")
    writer.commit()
    writer.close()
    for n, run in enumerate(opened, start=1):
        assert (run.n_steps, run.n_windows, run.has_final) == (n, n, False)
        np.testing.assert_array_equal(run.steps["loss"], np.arange(n))
        assert run.steps["step"].size == n
        assert run.windows["stop"].values.tolist() == list(range(1, n + 1))
        table = run.steps["grad_sq"].values
        column = table_columns(SPEC)["grad_sq"].start
        rows = [random_rows(k, 1)["tables"][0, :, column] for k in range(n)]
        np.testing.assert_array_equal(table, rows)
    assert open_run(path).has_final


@pytest.mark.parametrize("last_key", ["scalars/zarr.json", "zarr.json"])
def test_steps_are_whole_in_the_middle_of_a_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch, last_key: str
):
    writer = Writer(path, SPEC)
    writer.steps.append(random_rows(0, 2), [{"loss": 1.0}] * 2)
    writer.commit()
    whole = LocalStore.set

    async def stop_before(self: LocalStore, key: str, *args: Any) -> None:
        if key == last_key:
            raise OSError("killed")
        await whole(self, key, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "set", stop_before)
        writer.steps.append(random_rows(2, 3), [{"loss": 2.0, "new": 3.0}] * 3)
        with pytest.raises(OSError, match="killed"):
            writer.commit()
    writer.close()
    steps = open_run(path).steps.load()
    assert steps["loss"].values.tolist() == [1, 1]
    assert "new" not in steps
    np.testing.assert_array_equal(steps["iteration"], [0, 1])


@pytest.mark.parametrize("status", ["complete", "failed"])
def test_the_status_of_a_closed_run_is_how_it_ended(path: Path, status: str):
    write_run(path, n_steps=1, status=status)
    assert open_run(path).status == status
    assert open_run(path).steps.attrs["status"] == status


def test_a_run_that_lost_its_lock_before_it_was_closed_is_interrupted(path: Path):
    write_run(path, n_steps=2, status=None)
    assert open_run(path).status == "interrupted"
    # A killed process leaves the lock file, but no longer holds the lock.
    (path / ".lock").touch()
    assert open_run(path).status == "interrupted"
    assert open_run(path).n_steps == 2


def test_reading_the_status_does_not_disturb_the_writer(path: Path):
    writer = Writer(path, SPEC)
    writer.commit()
    run = open_run(path)
    assert [run.status for _ in range(3)] == ["running"] * 3
    writer.close()


# Refusals


def test_a_missing_path_is_named(path: Path):
    with pytest.raises(FileNotFoundError, match=r"no trajectory store at .*run\.zarr"):
        open_run(path)


def make_file(path: Path) -> None:
    path.write_text("text")


def make_group(path: Path) -> None:
    zarr.create_group(path, attributes={"format": "other"})


def make_array(path: Path) -> None:
    zarr.create_array(path, shape=(2,), dtype="f4")


def make_document(text: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        (path / "zarr.json").write_text(text)

    return make


FOREIGN = {
    "file": (make_file, r"run\.zarr: not a trajectory store; it has no zarr\.json"),
    "empty": (Path.mkdir, r"run\.zarr: not a trajectory store; it has no zarr\.json"),
    "group": (make_group, r"run\.zarr: not a trajectory store: its attributes"),
    "array": (make_array, r"run\.zarr: not a trajectory store: its attributes"),
    "list": (make_document("[1]"), "not a trajectory store: its attributes"),
    "no attributes": (make_document("{}"), "not a trajectory store: its attributes"),
    "no text": (make_document(""), r"zarr\.json: truncated or damaged \("),
}


@pytest.mark.parametrize(("make", "message"), FOREIGN.values(), ids=FOREIGN)
def test_anything_but_a_store_is_refused(
    path: Path, make: Callable[[Path], None], message: str
):
    make(path)
    with pytest.raises(SchemaError, match=message):
        open_run(path)


def test_a_truncated_root_is_refused(path: Path, ten_steps: Path):
    shutil.copytree(ten_steps, path)
    whole = (path / "zarr.json").read_bytes()
    for n in (1, len(whole) // 2, len(whole) - 1):
        (path / "zarr.json").write_bytes(whole[:n])
        with pytest.raises(SchemaError, match=r"zarr\.json: truncated or damaged \("):
            open_run(path)


def test_problems_of_the_document_name_the_location(path: Path, ten_steps: Path):
    shutil.copytree(ten_steps, path)
    change_root_of(path, lambda attributes, _: attributes.update(status="", metrics=1))
    with pytest.raises(SchemaError, match=r"run\.zarr: status: ") as error:
        open_run(path)
    status, metrics = error.value.problems
    assert status.startswith(f"{path}: status: expected one of")
    assert metrics.startswith(f"{path}: metrics: expected a list")


# A run that was recorded


def test_the_recorded_example_holds_consistent_numbers(example_run: Path):
    run = open_run(example_run)
    assert (run.n_steps, run.n_epochs, run.status) == (60, 5, "complete")
    assert run.snapshots == ("middle",)
    steps = run.steps
    scalars = {"loss", "lr", "wall_time", "grad_norm", "update_norm", "param_norm"}
    assert scalars <= set(steps.data_vars)
    np.testing.assert_array_equal(steps["epoch"], np.arange(60) // 12)
    np.testing.assert_array_equal(steps["iteration"], np.arange(60) % 12)
    # grad_norm is the float64 sum of the float32 squares in grad_sq.
    np.testing.assert_allclose(
        steps["grad_norm"] ** 2, steps["grad_sq"].astype(float).sum("layer"), rtol=1e-12
    )
    final = run.stored.array("final")[...].astype(float)
    last = run.windows["start"].values[-1]
    assert last == 59
    # x_60 = x_59 + u_59, and the last window's anchor is x_59, up to an int8 rounding
    # error that is far smaller than 5 % of the last update.
    displacement = final - run.stored.anchors.decode(
        run.n_windows - 1, slice(0, final.size)
    )
    length = math.sqrt(steps["update_sq"].isel(step=-1).sum())
    assert abs(np.linalg.norm(displacement) / length - 1) < 0.05
