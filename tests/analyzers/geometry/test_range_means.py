"""Runs without epochs are averaged over ranges of steps."""

import dask
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import analyzers
from analyzers import plots
from analyzers.geometry import command
from analyzers.geometry.epoch_means import means_for_tables
from tests.analyzers.geometry.test_epoch_means import POWER, slow_stderr, synthetic
from tests.analyzers.laziness import fail_if_computed


def one_epoch(*, layers: bool = False) -> xr.Dataset:
    geometry = synthetic(layers=layers)
    n = geometry.sizes["step"]
    return geometry.assign_coords(
        step=np.arange(n),
        epoch=("step", np.zeros(n, int)),
        iteration=("step", np.arange(n)),
    )


@pytest.mark.parametrize("name", POWER)
def test_means_and_errors_are_those_of_the_steps(name: str):
    geometry = one_epoch()
    means = analyzers.range_means(geometry, n_ranges=3)
    assert means["step"].values.tolist() == [0, 3, 6]
    assert means["last_step"].values.tolist() == [2, 5, 7]
    assert means["n_steps"].values.tolist() == [3, 3, 2]
    for i, steps in enumerate(([0, 1, 2], [3, 4, 5], [6, 7])):
        part = geometry[name].isel(step=steps)
        assert float(means[name][i]) == pytest.approx(float(part.mean()))
        assert float(means[f"{name}_min"][i]) == float(part.min())
        assert float(means[f"{name}_max"][i]) == float(part.max())
        stderr = slow_stderr(geometry, name, steps)
        assert float(means[f"{name}_stderr"][i]) == pytest.approx(stderr)


def test_ranges_stay_lazy_and_keep_layers():
    geometry = one_epoch(layers=True)
    with dask.config.set(scheduler=fail_if_computed):
        lazy = analyzers.range_means(geometry.chunk(step=3), n_ranges=4)
    xr.testing.assert_allclose(
        lazy.compute(), analyzers.range_means(geometry, n_ranges=4)
    )


def test_there_are_at_most_as_many_ranges_as_steps():
    means = analyzers.range_means(one_epoch())
    assert means.sizes["step"] == 8
    with pytest.raises(
        ValueError, match="at least one range and one step, got 0 ranges"
    ):
        analyzers.range_means(one_epoch(), n_ranges=0)
    with pytest.raises(ValueError, match="and 0 steps"):
        analyzers.range_means(one_epoch().isel(step=[]))


def test_tables_have_epochs_if_there_are_several():
    assert "epoch" in means_for_tables(synthetic()).dims
    assert "step" in means_for_tables(one_epoch()).dims
    assert "epoch" in means_for_tables(one_epoch().isel(step=[0])).dims


def test_the_table_and_the_figures_show_ranges():
    means = analyzers.range_means(one_epoch(), n_ranges=3)
    table = command._table(means)
    assert [*table.columns[0].cells] == ["0-2", "3-5", "6-7"]
    assert table.columns[0].header == "steps"
    means["gamma"][1] = np.nan
    means["n_missing"][1] = 2
    assert "Steps without a value: 2, in steps 3-5." in command._missing(means)
    axes = plots.epoch_means(means)
    assert axes.get_xlabel() == "step"
    assert axes.get_xlim() == (-0.5, 7.5)
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [1.0, 4.0, 6.5]
    figure = plots.path_geometry(means)
    assert len(figure.axes) == 6
    layers = analyzers.range_means(one_epoch(layers=True), n_ranges=3)
    assert plots.layer_means(layers).get_xlabel() == "step"
    plt.close("all")
