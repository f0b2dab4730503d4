"""Test ``analyzers.curvature.plots``: figures show the numbers of the result."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import PolyCollection

from analyzers import plots


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


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
    ax = plots.edge_of_stability(edge)
    assert ax.get_title() == "slow"
    assert ax.get_ylabel() == "preconditioned sharpness"
    found, threshold = ax.lines
    np.testing.assert_array_equal(found.get_ydata(), edge.sharpness)
    np.testing.assert_array_equal(found.get_xdata(), edge.step)
    np.testing.assert_array_equal(threshold.get_ydata(), 5)
    assert found.get_color() == threshold.get_color()
    assert plots.edge_of_stability(edge, title="fast").get_title() == "fast"


def test_lines_of_many_steps_are_means_with_their_range(edge: xr.Dataset):
    step = np.arange(1201)
    values = np.where(step % 4 == 0, np.nan, 10.0 * (step // 4) + step % 4)
    along = xr.Dataset({"smoothness": ("step", values)}, {"step": step})
    ax = plots.smoothness(along, title="here", label="steps")
    assert plots.smoothness(edge, ax=ax, label="sharpness") is ax
    mean, sharpness = ax.lines
    np.testing.assert_allclose(
        np.asarray(mean.get_ydata(), float), 10 * np.arange(300) + 2
    )
    np.testing.assert_allclose(
        np.asarray(mean.get_xdata(), float), 4 * np.arange(300) + 1.5
    )
    [band] = [c for c in ax.collections if isinstance(c, PolyCollection)]
    ends = np.asarray(band.get_paths()[0].vertices)
    assert (ends[:, 1].min(), ends[:, 1].max()) == (1, 10 * 299 + 3)
    np.testing.assert_array_equal(sharpness.get_ydata(), edge.sharpness)
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["steps", "sharpness"]


def test_slack_is_drawn_through_zero():
    slack = xr.Dataset({"slack": ("step", [1.0, -1.0, 2.0])}, {"step": [0, 1, 2]})
    ax = plots.convexity(slack, title="near")
    low, high = ax.get_ylim()
    assert low < 0 < high
    assert ax.get_title() == "near"


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_results_without_a_range_are_drawn(value: float):
    slack = xr.Dataset({"slack": ("step", [value] * 3)}, {"step": [0, 1, 2]})
    ax = plots.convexity(slack)
    assert np.isfinite(ax.get_ylim()).all()
    ax.figure.canvas.draw()


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
