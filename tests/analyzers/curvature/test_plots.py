"""Test ``analyzers.curvature.plots``: figures show the numbers of the result."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from analyzers import plots


@pytest.fixture
def edge() -> xr.Dataset:
    step = np.arange(0, 50, 10)
    return xr.Dataset(
        {
            "sharpness": ("step", [1.0, 3.0, 6.0, 5.0, 5.1]),
            "threshold": ("step", np.full(5, 5.0)),
        },
        {"step": step},
        {"recorded_as": "preconditioned_sharpness", "run": "/runs/slow.zarr"},
    )


def test_sharpness_is_drawn_with_the_threshold(edge: xr.Dataset):
    panel = plots.edge_of_stability(edge)
    assert panel.title == "slow"
    assert panel.ylabel == "preconditioned sharpness"
    found, threshold = panel.curves
    np.testing.assert_array_equal(found.y, edge.sharpness)
    np.testing.assert_array_equal(found.x, edge.step)
    np.testing.assert_array_equal(threshold.y, 5)
    assert plots.edge_of_stability(edge, title="fast").title == "fast"
    with pytest.warns(DeprecationWarning, match=r"use analyzers\.plots\.edge_of_stab"):
        assert plots.edge(edge).title == "slow"


def test_lines_of_many_steps_are_means_with_their_range(edge: xr.Dataset):
    step = np.arange(1201)
    values = np.where(step % 4 == 0, np.nan, 10.0 * (step // 4) + step % 4)
    along = xr.Dataset({"smoothness": ("step", values)}, {"step": step})
    panel = plots.smoothness({"steps": along, "sharpness": edge}, title="here")
    mean, sharpness = panel.curves
    np.testing.assert_allclose(mean.y, 10 * np.arange(300) + 2)
    np.testing.assert_allclose(mean.x, 4 * np.arange(300) + 1.5)
    assert mean.low is not None
    assert mean.high is not None
    np.testing.assert_allclose(mean.low, mean.y - 1)
    np.testing.assert_allclose(mean.high, mean.y + 1)
    np.testing.assert_array_equal(sharpness.y, edge.sharpness)
    assert sharpness.low is None


def test_slack_is_drawn_through_zero():
    slack = xr.Dataset({"slack": ("step", [1.0, -1.0, 2.0])}, {"step": [0, 1, 2]})
    figure = plots.draw_panels([plots.convexity(slack, title="near")], n_columns=1)
    [ax] = figure.axes
    low, high = ax.get_ylim()
    assert low < 0 < high
    assert ax.get_title() == "near"
    plt.close(figure)


def test_every_layer_is_drawn_with_its_largest_cosine():
    found = xr.Dataset(
        {
            "cosine_max": ("layer", [1e-6, 0.5]),
            "cosine_rms": ("layer", [1e-7, 0.3]),
        },
        {"layer": np.array(["a", "b"], object)},
        {"tolerance": 1e-4},
    )
    ax = plots.scale_invariance(found)
    lines = [np.asarray(line.get_xdata(), float) for line in ax.get_lines()]
    largest, root, tolerance = lines
    np.testing.assert_allclose(largest, [1e-6, 0.5])
    np.testing.assert_allclose(root, [1e-7, 0.3])
    np.testing.assert_allclose(tolerance, 1e-4)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    # The first tensor is at the top.
    low, high = ax.get_ylim()
    assert low > high
    plt.close("all")
