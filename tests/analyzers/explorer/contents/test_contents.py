"""Test what a page shows of a run against the public analyses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

pytest.importorskip("torch")

import analyzers
import trajstore
from analyzers.explorer.contents.curves import (
    geometry_curves,
    null_curve,
    scalar_curves,
)
from analyzers.explorer.contents.layer_grid import layer_grid, modules_of
from analyzers.explorer.contents.shown_run import (
    ShownRun,
    known_epochs,
    positions,
    show_runs,
    unique,
)
from analyzers.explorer.contents.stored_geometries import (
    read_geometry,
    stored_geometries,
)


@pytest.fixture
def shown(example_run: Path, tmp_path: Path) -> ShownRun:
    """A run whose geometries relative to the last iterate and to epoch 3 are stored."""
    path = shutil.copytree(example_run, tmp_path / "run.zarr")
    run = trajstore.open_run(path)
    analyzers.store_geometry(run)
    analyzers.store_geometry(run, layers=True)
    analyzers.store_geometry(run, reference=3)
    return show_runs([run])[0]


def test_names_differ():
    assert unique(["a", "b", "a"]) == ["a (1)", "b", "a (2)"]


def test_positions_divide_epochs_evenly():
    epoch = np.array([0, 0, 0, 0, 1, 1, 2])
    np.testing.assert_allclose(positions(epoch), [0, 0.25, 0.5, 0.75, 1, 1.5, 2])
    assert known_epochs(np.array([0, -1, 1, -1])).tolist() == [0, 0, 1, 1]


def test_stored_geometries_are_found_and_read(shown: ShownRun):
    found = stored_geometries(shown.run)
    assert [one.reference for one in found] == ["final", "epoch 3"]
    read = read_geometry(shown.run, "epoch-3")
    expected = analyzers.path_geometry(shown.run, reference=3).compute()
    assert read is not None
    for name in expected:
        np.testing.assert_array_equal(read[name].values, expected[name].values)


def test_results_of_another_state_are_not_shown(
    shown: ShownRun, train_small: Callable[..., Any], tmp_path: Path
):
    other = tmp_path / "other.zarr"
    from functools import partial

    train_small(partial(trajstore.Recorder, other), sketch_bits=1024, probes=256)
    shutil.copytree(tmp_path / "run.analysis.zarr", tmp_path / "other.analysis.zarr")
    assert stored_geometries(trajstore.open_run(other)) == []


def test_damaged_results_are_not_shown(shown: ShownRun, tmp_path: Path):
    group = zarr.open_group(tmp_path / "run.analysis.zarr", mode="r+")["final"]
    assert isinstance(group, zarr.Group)
    array = group["gamma"]
    assert isinstance(array, zarr.Array)
    array[0] = 0.5
    assert read_geometry(shown.run, "final") is None
    facts = json.loads(str(group.attrs["computed_from"]))
    assert facts["n_steps"] == 60


def test_curves_are_the_means_of_epochs_and_the_steps(shown: ShownRun):
    [final, _] = stored_geometries(shown.run)
    curves = geometry_curves(shown, final, most=1000)
    assert curves is not None
    geometry = analyzers.path_geometry(shown.run)
    means = analyzers.epoch_means(geometry).compute()
    for name in ("gamma", "rsi", "eb", "lolr", "distance"):
        for end in ("", "_stderr", "_min", "_max"):
            values = curves.by_epoch[f"{name}{end}"]
            np.testing.assert_allclose(values, means[f"{name}{end}"].values)
        steps = curves.by_step[f"{name}_min"]
        np.testing.assert_allclose(steps, geometry[name].values, rtol=1e-6)
        errors = geometry[f"{name}_stderr"].values
        np.testing.assert_allclose(curves.by_step[f"{name}_stderr"], errors, rtol=1e-6)


def test_scalars_and_the_random_walk_are_averaged_by_epoch(shown: ShownRun):
    by_epoch, by_step, _ = scalar_curves(shown, most=20)
    loss = shown.run.steps.loss.groupby("epoch")
    np.testing.assert_allclose(by_epoch["loss"], loss.mean().values)
    np.testing.assert_allclose(by_epoch["loss_max"], loss.max().values)
    assert len(by_step["x"]) == 20
    lowest = shown.run.steps.loss.values.reshape(20, 3).min(1)
    np.testing.assert_allclose(by_step["loss_min"], lowest, rtol=1e-6)
    walk = analyzers.random_walk_gamma(shown.run).groupby("epoch")
    null = null_curve(shown)
    assert null is not None
    np.testing.assert_allclose(null["gamma"], walk.mean().values)


def test_images_are_means_of_epochs_by_layer(shown: ShownRun):
    grid = layer_grid(shown, {"final": "final"})
    images = {image.name: image for image in grid.images}
    geometry = analyzers.path_geometry(shown.run, layers=True)
    means = analyzers.epoch_means(geometry).transpose("layer", "epoch").compute()
    np.testing.assert_allclose(images["gamma"].values, means.gamma.values)
    stderr = images["gamma"].stderr
    assert stderr is not None
    np.testing.assert_allclose(stderr, means.gamma_stderr.values)
    cosine = analyzers.zigzag(shown.run, layers=True).cosine.groupby("epoch").mean()
    wanted = cosine.transpose("layer", "epoch").values
    np.testing.assert_allclose(images["cosine"].values, wanted, rtol=1e-5)
    steps = shown.run.steps
    ratio = (steps.update_sq / steps.param_sq) ** 0.5
    wanted = ratio.groupby("epoch").mean().transpose("layer", "epoch").values
    np.testing.assert_allclose(images["ratio"].values, wanted, rtol=1e-5)
    assert grid.edges.tolist() == [0, 1, 2, 3, 4, 5]


def test_layers_are_grouped_by_module():
    names = ["stem.weight", "stem.bias", "blocks.0.w", "blocks.1.w", "head"]
    assert modules_of(names) == [("stem", 0, 2), ("blocks", 2, 4), ("head", 4, 5)]
