"""Test ``analyzers.conditions.plots``: figures show the numbers of the result."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from analyzers import plots


@pytest.fixture
def datasets() -> list[xr.Dataset]:
    """Return made-up results of `analyzers.alpha_beta` for one run of three steps."""
    values = {
        "product": [1.0, 2.0, 0.5],
        "product_stderr": [0.1, 0.2, 0.1],
        "loss": [1.0, 2.0, 0.5],
        "reference_loss": [0.5, 0.5, 0.5],
    }
    variables = {name: ("step", value) for name, value in values.items()}
    return [xr.Dataset(variables, {"step": [0, 1, 2]}, {"optimal_loss": 0.0})]


def pairs(best: tuple[float, float]) -> xr.Dataset:
    variables: dict[str, Any] = dict(
        zip(("best_alpha", "best_beta"), best, strict=True)
    )
    variables |= {"alpha": ("vertex", [0.5]), "step": ("vertex", [2])}
    return xr.Dataset(variables, attrs={"min_gap": 0.1})


def grid() -> tuple[xr.Dataset, list[xr.DataArray]]:
    """Return margins on a grid, and three equal boundaries."""
    alpha, beta = np.array([0.5, 1.0, 1.5]), np.array([0.0, 0.5])
    margin = alpha[:, None] - beta - 1
    margins = xr.Dataset(
        {"margin": (("alpha", "beta"), margin)}, {"alpha": alpha, "beta": beta}
    )
    return margins, [xr.DataArray([-0.5, 0.0, 0.5], {"alpha": alpha}, "alpha")] * 3


def test_the_smallest_pair_and_its_margins_are_drawn(datasets: list[xr.Dataset]):
    margins, boundaries = grid()
    figure = plots.alpha_beta(datasets, margins, pairs((1.0, 0.5)), boundaries)
    left, right, *_ = figure.axes
    boundary, *_, star = left.get_lines()
    np.testing.assert_array_equal(boundary.get_ydata(), [0, 0, 0.5])
    np.testing.assert_array_equal(star.get_xydata(), [[1.0, 0.5]])
    # T_k = a_k - alpha (l_k - r_k) + beta l_k.
    drawn = np.asarray(right.get_lines()[0].get_ydata(), float)
    np.testing.assert_allclose(drawn, [1.0, 1.5, 0.75])
    plt.close(figure)


def test_an_empty_set_is_drawn_as_such(datasets: list[xr.Dataset]):
    margins, boundaries = grid()
    empty = pairs((np.nan, np.nan))
    figure = plots.alpha_beta(datasets, margins, empty, boundaries)
    left, right, *_ = figure.axes
    assert left.get_title() == right.texts[0].get_text() == "no pair holds"
    plt.close(figure)


def test_aiming_is_drawn_by_epoch():
    values = {name: ("step", [0.0, 1.0, 4.0, 2.0]) for name in ("cosine", "theta")}
    epochs = {"epoch": ("step", [0, 0, 1, 1])}
    figure = plots.aiming(xr.Dataset(values, epochs, {"gradient": "minibatch"}))
    assert figure.get_suptitle() == "gradients: minibatch"
    for ax in figure.axes[:2]:
        np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), [0.5, 3.0])
    plt.close(figure)


def test_the_smallest_mu_of_every_epoch_is_drawn():
    mu = (("step", "delta"), [[1.0, 2.0], [3.0, 1.0], [5.0, 7.0]])
    coordinates = {"epoch": ("step", [0, 0, 1]), "delta": [1.0, 2.0]}
    bounds = xr.Dataset({"mu": mu}, coordinates, {"gradient": "minibatch"})
    first, second = plots.polyak_lojasiewicz(bounds).get_lines()
    np.testing.assert_array_equal(first.get_ydata(), [1, 5])
    np.testing.assert_array_equal(second.get_ydata(), [1, 7])
    assert first.get_label() == r"$\delta$ = 1"
    plt.close("all")


def test_a_run_without_epochs_is_drawn_by_ranges_of_steps():
    n = 100
    values = {name: ("step", np.arange(n) + 1.0) for name in ("cosine", "theta")}
    coordinates = {"step": np.arange(n), "epoch": ("step", np.zeros(n, int))}
    figure = plots.aiming(xr.Dataset(values, coordinates, {"gradient": "full batch"}))
    ax = figure.axes[0]
    assert ax.get_xlabel() == "step"
    line = ax.lines[0]
    # Ranges stand at their middles, as in figures of the geometry.
    np.testing.assert_array_equal(line.get_xdata(), np.arange(2, n, 5))
    np.testing.assert_array_equal(line.get_ydata(), np.arange(0, n, 5) + 3.0)
    mu = (("step", "delta"), np.arange(n)[:, None] + 1.0)
    bounds = xr.Dataset({"mu": mu}, coordinates | {"delta": [1.0]}, {"gradient": "g"})
    ax = plots.polyak_lojasiewicz(bounds)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), np.arange(0, n, 5) + 1.0)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), np.arange(2, n, 5))
    assert ax.get_xlabel() == "step"
    plt.close("all")


@pytest.mark.parametrize("sign", [1, -1])
def test_colours_show_most_values_of_a_sign(sign: int):
    """One far value does not make all others pale, and a missing sign is no scale of 0."""
    margins, boundaries = grid()
    values = np.array([[1e-6, 2e-6], [3e-6, 4e-6], [5e-6, 0.4]])
    margins["margin"] = (("alpha", "beta"), sign * values)
    ax = plots.feasible_set(margins, pairs((1.0, 0.5)), boundaries)
    norm: Any = ax.collections[0].norm
    assert 3e-6 < sign * (norm.vmax if sign > 0 else norm.vmin) < 0.1
    assert norm.vmin == -norm.vmax
    plt.close("all")


def test_the_largest_alpha_at_beta_0_is_marked():
    margins, boundaries = grid()
    feasible = pairs((0.1, 0.0)).drop_dims("vertex")
    feasible = feasible.assign(alpha=("vertex", [0.1, 1.25]), step=("vertex", [-1, 0]))
    ax = plots.feasible_set(margins, feasible, boundaries)
    np.testing.assert_array_equal(ax.lines[-1].get_xydata(), [[1.25, 0.0]])
    plt.close("all")


def test_the_legend_of_mu_covers_no_curve():
    mu = (("step", "delta"), np.ones((4, 5)))
    coordinates = {"epoch": ("step", range(4)), "delta": np.linspace(1, 2, 5)}
    ax = plots.polyak_lojasiewicz(
        xr.Dataset({"mu": mu}, coordinates, {"gradient": "g"})
    )
    ax.figure.canvas.draw()
    drawn: Any = ax.get_legend()
    legend, axes = (x.get_window_extent() for x in (drawn, ax))
    assert not legend.overlaps(axes)
    plt.close("all")
