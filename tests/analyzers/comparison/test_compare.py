"""Test ``analyzers.compare``, its figures and its settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import analyzers
import trajstore
from analyzers.comparison.compare import mid_run
from analyzers.comparison.settings import different_settings
from tests.analyzers.geometry.seeded import Seeded
from tests.analyzers.laziness import fail_if_computed

torch = pytest.importorskip("torch")

QUANTITIES = ("gamma", "rsi", "eb", "lolr", "distance")


@pytest.fixture(scope="module")
def compared(trainings: Sequence[Seeded]) -> xr.Dataset:
    return analyzers.compare([t.runs[0] for t in trainings]).compute()


def test_means_are_those_of_each_run(trainings: Sequence[Seeded], compared: xr.Dataset):
    for i, training in enumerate(trainings):
        geometry = analyzers.path_geometry(training.runs[0])
        means = analyzers.epoch_means(geometry).compute()
        own = compared.isel(run=i).sel(epoch=means.epoch)
        for name in QUANTITIES:
            for ending in ("", "_stderr", "_min", "_max"):
                np.testing.assert_allclose(own[name + ending], means[name + ending])
    np.testing.assert_array_equal(compared.n_steps, [[16] * 4 + [0] * 2, [16] * 6])
    assert np.isnan(compared.gamma.values[0, 4:]).all()
    assert compared.gamma.attrs["units"] == "1"
    assert compared.gamma_difference.attrs["long_name"] == (
        "gamma minus that of the first run"
    )


def test_settings_that_differ_are_coordinates(compared: xr.Dataset):
    assert compared.run.values.tolist() == ["first/0.zarr", "second/0.zarr"]
    # The learning rate is recorded too, as a variable.
    np.testing.assert_array_equal(compared.lr_setting, [0.01, 0.011])
    np.testing.assert_allclose(compared.lr.values[:, 0], [0.01, 0.011])
    # Without metadata, it is known from what was recorded.
    np.testing.assert_allclose(compared["optimizer.lr"], [0.01, 0.011])
    assert compared["note.text"].values.tolist() == ["first", "second"]
    np.testing.assert_array_equal(compared.steps, [64, 96])
    assert "seed" not in compared.coords
    assert "optimizer.class" not in compared.coords


@pytest.mark.parametrize("shift", [0, 1], ids=["same seed", "other seeds"])
def test_differences_agree_with_their_errors(trainings: Sequence[Seeded], shift: int):
    first, second = trainings
    scores = []
    expected = {
        name: np.nanmean(
            second.exact()[name][:64].reshape(4, 16)
            - first.exact()[name].reshape(4, 16),
            axis=1,
        )
        for name in QUANTITIES
    }
    for i, run in enumerate(first.runs):
        other = second.runs[(i + shift) % len(second.runs)]
        # The target of both is the end of the longer run's first four epochs.
        found = analyzers.compare([run, other]).compute()
        for name in ("gamma", "eb"):
            error = found[f"{name}_difference"].values[1, :3] - expected[name][:3]
            scores.append(error / found[f"{name}_difference_stderr"].values[1, :3])
    rms = np.sqrt(np.mean(np.square(scores)))
    # Errors of runs with the same random signs nearly cancel.
    assert rms < 0.7 if shift == 0 else 0.7 < rms < 1.4


def test_a_run_minus_itself_is_zero(example_run: Path):
    found = analyzers.compare([example_run, str(example_run)]).compute()
    for name in QUANTITIES:
        assert (found[f"{name}_difference"] == 0).all()
        assert (found[f"{name}_difference_stderr"] == 0).all()
    assert found.run.values.tolist() == ["run.zarr", "run.zarr (2)"]


def test_nothing_is_computed_before_it_is_asked_for(trainings: Sequence[Seeded]):
    with dask.config.set(scheduler=fail_if_computed):
        lazy = analyzers.compare([t.runs[0].location for t in trainings])
    assert lazy.sizes["run"] == 2


def test_no_runs_are_refused():
    with pytest.raises(ValueError, match="`runs` is empty"):
        analyzers.compare([])


def test_a_run_is_summarised_by_the_middle_half_of_its_epochs(compared: xr.Dataset):
    middle = mid_run(compared)
    for i, half in enumerate((slice(1, 3), slice(2, 4))):
        inner = compared.isel(run=i, epoch=half)
        np.testing.assert_allclose(middle.gamma[i], inner.gamma.mean())
        stderr = np.sqrt((inner.gamma_stderr**2).sum()) / 2
        np.testing.assert_allclose(middle.gamma_stderr[i], stderr)
        np.testing.assert_allclose(middle.rsi[i], np.median(inner.rsi))
        np.testing.assert_allclose(middle.lr[i], inner.lr.mean())
    difference = middle.rsi[1] - middle.rsi[0]
    np.testing.assert_allclose(middle.rsi_difference[1], difference)
    stderr = np.hypot(*middle.rsi_stderr.values)
    np.testing.assert_allclose(middle.rsi_difference_stderr[1], stderr)
    assert middle.rsi_difference_stderr[0] == 0


def test_a_comparison_is_drawn(trainings: Sequence[Seeded], compared: xr.Dataset):
    figure = analyzers.plots.compare(compared)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert len(titles) == 7
    gamma = figure.axes[0]
    drawn = [container[0] for container in gamma.containers]
    for i, line in enumerate(drawn):
        np.testing.assert_array_equal(
            line.get_ydata(), compared.gamma[i, : (3, 5)[i]].values
        )
    plt.close(figure)
    path = analyzers.path_pca([t.runs[0] for t in trainings]).compute()
    ax = analyzers.plots.path_pca(path)
    texts = ax.get_legend_handles_labels()[1]
    assert texts == ["first/0.zarr", "second/0.zarr"]
    alone = analyzers.plots.path_pca(path, ax=ax, color="black", label="$x$")
    assert alone is ax
    plt.close("all")
    apart = analyzers.path_distances([t.runs[0] for t in trainings]).compute()
    ax = analyzers.plots.path_distances(apart)
    np.testing.assert_array_equal(ax.images[0].get_array(), apart.distance)
    plt.close("all")
    single = analyzers.path_distances(trainings[0].runs[0], steps=[0, 9]).compute()
    ax = analyzers.plots.path_distances(single, label="far")
    plt.close("all")


def test_a_map_needs_two_components(example_run: Path):
    path = analyzers.path_pca(example_run, components=1)
    with pytest.raises(
        ValueError, match="needs two components, and the dataset has one"
    ):
        analyzers.plots.path_pca(path)


HOSTILE: dict[str, Any] = {
    "../../etc": 1,
    "zarr.json": 2,
    "\x1b[31m": "\x1b[2J\ud800",
    "a": {"b": {"c": {"d": [1, 2]}}},
    "": True,
    "x" * 500: "y" * 5000,
    "gamma": 3,
    "big": 10**400,
}


def test_hostile_settings_have_plain_names(
    tmp_path: Path, example_run: Path, train_small: Any
):
    def observe(*args: Any, **options: Any) -> Any:
        return trajstore.Recorder(
            tmp_path / "run.zarr", *args, attrs=HOSTILE, sketch_bits=64, **options
        )

    train_small(observe)
    runs = [trajstore.open_run(path) for path in (example_run, tmp_path / "run.zarr")]
    found = different_settings(runs)
    expected = {"etc", "31m", "a.b.c", "setting", "x" * 60, "gamma", "big"}
    assert expected <= set(found)
    assert found["31m"].tolist() == ["", "\x1b[2J\\ud800"]
    assert found["a.b.c"].tolist() == ["", '{"d": [1, 2]}']
    assert all(len(str(v)) <= 210 for values in found.values() for v in values)
    compared = analyzers.compare(runs).compute()
    assert compared.gamma_setting.values.tolist() == ["", "3"]
    compared.to_zarr(tmp_path / "out" / "compared.zarr", consolidated=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["compared.zarr"]


def test_a_mid_run_difference_without_errors_has_no_error_of_0(example_run: Path):
    compared = analyzers.compare([example_run, example_run]).compute()
    for suffix in ("_stderr", "_difference_stderr"):
        compared[f"eb{suffix}"][1] = np.nan
    middle = mid_run(compared)
    assert np.isnan(middle["eb_difference_stderr"][1])
    assert middle["distance_difference_stderr"][1] == 0
