"""Test the engine ``"trajstore"`` of xarray."""

import shutil
import tomllib
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import trajstore
from trajstore.reading.results import results_location, write_results
from trajstore.reading.xarray_backend import TrajstoreBackend

pytest.importorskip("torch")

NAME = "full batch/1"


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, train_small: Callable[..., Any]
) -> Path:
    """Return a run with a measurement, and with results next to it."""
    path: Path = tmp_path_factory.mktemp("backend") / "run.zarr"

    class Measuring(trajstore.Recorder):
        def log(self, **values: Any) -> None:
            super().log(**values)
            if values:
                self.measure(NAME, loss=1.0)

    train_small(partial(Measuring, path), sketch_bits=64, probes=16)
    run = trajstore.open_run(path)
    rows = {"step": np.arange(3), "epoch": ("step", [0, 0, 1])}
    result = xr.Dataset({"gamma": ("step", [0.1, 0.2, 0.3], {"units": "1"})}, rows)
    write_results(run, "final", result.assign_coords(iteration=("step", [0, 1, 0])))
    write_results(run, "epoch-2", result.drop_vars("epoch"))
    return path


@pytest.fixture
def results(store: Path) -> str:
    return results_location(trajstore.open_run(store))


def open_dataset(path: Any, **options: Any) -> xr.Dataset:
    return xr.open_dataset(path, engine=TrajstoreBackend, **options)


def test_a_run_opens_as_its_steps(store: Path):
    found = open_dataset(store)
    expected = trajstore.open_run(store).steps
    for name, variable in expected.variables.items():
        np.testing.assert_array_equal(found[name].values, variable.values)
    assert found.grad_norm.attrs == expected.grad_norm.attrs
    assert found.epoch.attrs == {"long_name": "epoch of the step", "units": "1"}
    assert found.layer.values.tolist()[0] == "0.weight"


def test_steps_are_read_when_they_are_used(store: Path, tmp_path: Path):
    path = tmp_path / "run.zarr"
    shutil.copytree(store, path)
    shutil.rmtree(path / "scalars" / "c")
    lazy = open_dataset(path)
    with pytest.warns(UserWarning, match="its values read as NaN"):
        assert lazy.loss.isnull().all()


def test_a_data_frame_has_the_epoch_and_the_iteration(store: Path, results: str):
    frame = open_dataset(store)[["loss", "grad_sq"]].to_dataframe()
    assert frame.index.names == ["step", "layer"]
    one = frame.loc[(17, "0.bias")]
    assert (one.epoch, one.iteration) == (1, 5)
    kept = open_dataset(results, group="final").to_dataframe()
    assert kept.epoch.tolist() == [0, 0, 1]
    assert kept.iteration.tolist() == [0, 1, 0]
    # Datasets with the indexes of epochs need to drop them.
    steps = trajstore.open_run(store).steps.drop_indexes(["epoch", "iteration"])
    assert {"epoch", "iteration"} <= set(steps[["loss"]].to_dataframe().columns)


def test_epochs_can_be_indexed(store: Path):
    indexed = trajstore.index_epochs(open_dataset(store))
    assert indexed.loss.sel(epoch=2).sizes["step"] == 12


def test_steps_become_dask_arrays(store: Path):
    chunked = open_dataset(store, chunks={})
    assert chunked.loss.chunks == ((60,),)
    indexed = trajstore.index_epochs(chunked)
    assert indexed.loss.chunks == ((60,),)
    means = indexed.loss.groupby("epoch").mean().compute()
    np.testing.assert_allclose(means[0], open_dataset(store).loss[:12].mean())


def test_groups_are_chosen_by_name(store: Path, results: str):
    windows = open_dataset(store, group="windows")
    assert windows.start.values[0] == 0
    for group in (f"measurements/{NAME}", "measurements/full%20batch%2F1"):
        measured = open_dataset(store, group=group)
        assert measured.loss.values.tolist() == [1.0] * 60
    found = open_dataset(results, group="final", drop_variables="iteration")
    assert found.gamma.values.tolist() == [0.1, 0.2, 0.3]
    assert "iteration" not in found.variables


def test_trees_hold_every_group(store: Path, results: str):
    tree = xr.open_datatree(store, engine=TrajstoreBackend)
    assert set(tree.children) == {"steps", "windows", "measurements"}
    assert tree["measurements/full%20batch%2F1"].loss.sizes == {"step": 60}
    assert tree["steps"].attrs["status"] == "complete"
    tree = xr.open_datatree(results, engine=TrajstoreBackend)
    assert set(tree.children) == {"final", "epoch-2"}
    assert tree["final"].gamma.attrs["units"] == "1"


def test_unknown_groups_are_named(store: Path, results: str, tmp_path: Path):
    with pytest.raises(KeyError, match=r"No group 'final' in .*it has \['steps', "):
        open_dataset(store, group="final")
    with pytest.raises(ValueError, match=r"\['epoch-2', 'final'\]; choose one with"):
        open_dataset(results)
    with pytest.raises(FileNotFoundError, match="There are no results at"):
        open_dataset(tmp_path / "absent.analysis.zarr")


def test_only_our_stores_are_recognised(store: Path, results: str, tmp_path: Path):
    recognises = TrajstoreBackend().guess_can_open
    assert recognises(store)
    assert recognises(str(store))
    assert recognises(results)
    other = tmp_path / "other.zarr"
    xr.Dataset({"x": ("step", [1.0])}).to_zarr(other, consolidated=False, zarr_format=3)
    alone = tmp_path / "other.analysis.zarr"
    shutil.copytree(other, alone)
    linked = tmp_path / "linked.zarr"
    linked.mkdir()
    (linked / "zarr.json").symlink_to(store / "zarr.json")
    file = tmp_path / "zarr.json"
    shutil.copy(store / "zarr.json", file)
    foreign = [other, alone, linked, file, tmp_path / "absent.zarr", "a\0b", 3, None]
    assert not any(recognises(path) for path in foreign)


def test_the_engine_is_an_entry_point():
    with Path("pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    module, _, name = project["entry-points"]["xarray.backends"]["trajstore"].partition(
        ":"
    )
    assert getattr(import_module(module), name) is TrajstoreBackend
