"""Test ``analyzers.deep_linear.plots``."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from analyzers import plots


@pytest.fixture
def modes() -> xr.Dataset:
    """Return a made-up result of `analyzers.linear_modes`."""
    rng = np.random.default_rng(0)
    steps = {
        name: ("step", rng.uniform(0.1, 1, 5))
        for name in ("between_modes", "effective_rank", "imbalance")
    }
    by_mode = {
        name: (("step", "mode"), rng.normal(size=(5, 2)))
        for name in ("modes", "closed_form", "error")
    }
    drift = {"drift": ("step", [0.0, 0.1, 0.2, 0.3, 0.4])}
    coordinates = {
        "step": np.arange(5),
        "time": ("step", 0.1 * np.arange(5)),
        "strength": ("mode", [2.0, 0.5]),
    }
    return xr.Dataset(steps | by_mode | drift, coordinates, {"depth": 3})


def test_solid_lines_show_the_run_and_dashed_lines_the_flow(modes: xr.Dataset):
    ax = plots.mode_trajectories(modes)
    lines = ax.get_lines()
    for i in range(2):
        np.testing.assert_array_equal(lines[i].get_ydata(), modes.modes[:, i])
        np.testing.assert_array_equal(lines[2 + i].get_ydata(), modes.closed_form[:, i])
        np.testing.assert_array_equal(lines[i].get_xdata(), modes.time)
        assert (lines[i].get_linestyle(), lines[2 + i].get_linestyle()) == ("-", "--")
    _, labels = ax.get_legend_handles_labels()
    assert labels == [r"$\lambda$ = 2", r"$\lambda$ = 0.5", "gradient flow"]
    plt.close("all")


def test_errors_are_relative_to_the_largest_strength(modes: xr.Dataset):
    ax = plots.mode_errors(modes)
    for line, i in zip(ax.get_lines(), range(2), strict=False):
        drawn = np.asarray(line.get_ydata(), float)
        np.testing.assert_allclose(drawn, 100 * modes.error[:, i] / 2.0)
    plt.close("all")


def test_overview_has_four_panels(modes: xr.Dataset):
    figure = plots.linear_modes(modes)
    trajectories, errors, balance, rank = figure.axes
    assert trajectories.get_title() == "singular modes, 3 layers"
    assert errors.get_ylabel() == "run less gradient flow, %"
    imbalance, drift = balance.get_lines()
    np.testing.assert_array_equal(imbalance.get_ydata(), modes.imbalance[1:])
    np.testing.assert_array_equal(drift.get_ydata(), modes.drift[1:])
    np.testing.assert_array_equal(rank.get_lines()[0].get_ydata(), modes.effective_rank)
    plt.close("all")
