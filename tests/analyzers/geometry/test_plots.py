"""Test ``analyzers.geometry.plots``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection, QuadMesh
from matplotlib.container import ErrorbarContainer
from matplotlib.patches import Polygon, Rectangle

import analyzers
import trajstore
from analyzers import plots
from analyzers.geometry import plots as plots_module

QUANTITIES = ("gamma", "rsi", "eb", "lolr", "distance")


@pytest.fixture(autouse=True)
def _no_figure_is_left() -> Iterator[None]:
    yield
    plt.close("all")


def synthetic(
    n_epochs: int, *, layers: int = 0, negative: bool = False, name: str = ""
) -> xr.Dataset:
    """Return means that rise from 1 to `n_epochs`, except for an outlier in the last epoch."""
    dims = ("epoch", "layer") if layers else ("epoch",)
    shape = (n_epochs, layers)[: len(dims)]
    variables: dict[str, Any] = {}
    for quantity in QUANTITIES:
        value = np.arange(1.0, n_epochs + 1).reshape(-1, *(1,) * (len(dims) - 1))
        value = value * np.ones(shape)
        if n_epochs > 1:
            value[-1] = 100
        if negative:
            value = value - 3
        variables[quantity] = (dims, value)
        variables[f"{quantity}_stderr"] = (dims, np.full(shape, 0.25))
        variables[f"{quantity}_min"] = (dims, value - 0.5)
        variables[f"{quantity}_max"] = (dims, value + 1)
    # The path ends at x*.
    way = np.arange(n_epochs, 0.0, -1).reshape(-1, *(1,) * (len(dims) - 1))
    variables["distance_min"] = (dims, np.minimum(way * np.ones(shape), value - 0.5))
    if n_epochs > 1:
        variables["distance_min"][1][-1] = -5
    coordinates: dict[str, Any] = {"epoch": np.arange(n_epochs)}
    if layers:
        coordinates["layer"] = [f"block.{i}.weight" for i in range(layers)]
    return xr.Dataset(
        variables, coordinates, {"run": "runs/digits.zarr", "reference": "final"}
    )


def band(ax: Axes) -> np.ndarray:
    """Return the lowest and highest point of the band at every epoch, (epoch, 2)."""
    [artist] = [c for c in ax.collections if isinstance(c, PolyCollection)]
    [outline] = artist.get_paths()
    points = np.asarray(outline.vertices)
    return np.array(
        [
            (points[points[:, 0] == x, 1].min(), points[points[:, 0] == x, 1].max())
            for x in np.unique(points[:, 0])
        ]
    )


def bars(ax: Axes) -> np.ndarray:
    """Return both ends of the error bars, (epoch, 2)."""
    [container] = [c for c in ax.containers if isinstance(c, ErrorbarContainer)]
    [artist] = container[2]
    assert isinstance(artist, LineCollection)
    return np.array([np.asarray(segment)[:, 1] for segment in artist.get_segments()])


def shades(ax: Axes, label: str = "final epoch") -> list[Any]:
    return [
        patch
        for patch in ax.patches
        if isinstance(patch, (Rectangle, Polygon)) and patch.get_label() == label
    ]


@pytest.mark.parametrize("name", QUANTITIES[:-1])
def test_band_and_bars_show_different_things(name: str):
    means = synthetic(5)
    ax = plots.epoch_means(means, name)
    value = means[name].values
    # The bars show the error of the mean; the band shows the range of the steps.
    np.testing.assert_allclose(
        band(ax), np.stack([value - 0.5, value + 1], 1), rtol=1e-12
    )
    np.testing.assert_allclose(
        bars(ax), np.stack([value - 0.25, value + 0.25], 1), rtol=1e-12
    )
    [line] = [line for line in ax.lines if np.size(line.get_xdata()) == 5]
    np.testing.assert_array_equal(line.get_ydata(), value)


@pytest.mark.parametrize("name", QUANTITIES)
def test_axes_are_labelled(name: str):
    ax = plots.epoch_means(synthetic(3), name)
    assert ax.get_xlabel() == "epoch"
    assert ax.get_ylabel()
    assert ax.get_title()
    labels = ax.get_legend_handles_labels()[1]
    assert set(labels) == {
        "smallest to largest step",
        "mean, with its standard error",
        "final epoch",
    }


def test_quantities_have_labels_of_their_own():
    labels = {plots.epoch_means(synthetic(3), name).get_ylabel() for name in QUANTITIES}
    titles = {plots.epoch_means(synthetic(3), name).get_title() for name in QUANTITIES}
    assert len(labels) == len(titles) == len(QUANTITIES)


def test_final_epoch_is_shaded_and_does_not_set_the_limits():
    ax = plots.epoch_means(synthetic(5), "gamma")
    assert len(shades(ax)) == 1
    extent = shades(ax)[0].get_window_extent()
    left, right = ax.transData.inverted().transform(extent)[:, 0]
    assert (left, right) == pytest.approx((3.5, 4.5))
    # The last mean is 100; earlier means are at most 4, and their steps at most 5.
    assert 5 < ax.get_ylim()[1] < 6
    assert len(band(ax)) == 5


def test_final_epoch_can_be_dropped():
    ax = plots.epoch_means(synthetic(5), "gamma", final="drop")
    assert shades(ax) == []
    assert len(band(ax)) == len(bars(ax)) == 4
    assert 5 < ax.get_ylim()[1] < 6


@pytest.mark.parametrize("final", ["shade", "drop"])
def test_single_epoch_is_shown(final: Any):
    ax = plots.epoch_means(synthetic(1), "gamma", final=final)
    assert shades(ax) == []
    np.testing.assert_allclose(bars(ax), [[0.75, 1.25]])
    low, high = ax.get_ylim()
    assert low <= 0.5
    assert high >= 2


def test_negative_values_are_inside_the_limits_and_zero_is_marked():
    ax = plots.epoch_means(synthetic(5, negative=True), "gamma")
    assert ax.get_ylim()[0] < -2.5
    zeros = [line for line in ax.lines if np.all(np.asarray(line.get_ydata()) == 0)]
    assert len(zeros) == 1


def test_zero_is_inside_the_limits_of_positive_values():
    ax = plots.epoch_means(synthetic(5), "gamma")
    assert ax.get_ylim()[0] <= 0
    assert len(ax.lines) == 1


def test_epochs_that_are_missing_leave_a_gap():
    means = synthetic(5)
    for name in means.data_vars:
        means[name][2] = np.nan
    ax = plots.epoch_means(means, "gamma")
    assert np.isfinite(ax.get_ylim()).all()
    ax.figure.canvas.draw()


@pytest.mark.parametrize("n_epochs", [1, 2])
def test_run_without_any_value_can_be_drawn(n_epochs: int, tmp_path: Path):
    """A run that diverged has NaN in every epoch."""
    means = xr.full_like(synthetic(n_epochs), np.nan)
    figure = plots.path_geometry(means)
    assert not any(shades(ax) for ax in figure.axes)
    figure.savefig(tmp_path / "overview.png")


def test_only_the_last_epoch_is_called_final():
    means = synthetic(4)
    means["distance_min"][-1] = np.nan
    ax = plots.epoch_means(means, "gamma")
    assert not shades(ax)
    [shade] = [p for p in ax.patches if p.get_label() == "epoch closest to $x^*$"]
    assert isinstance(shade, Rectangle)
    assert shade.get_x() + shade.get_width() / 2 == 0


def test_given_axes_are_drawn_on():
    _, ax = plt.subplots()
    assert plots.epoch_means(synthetic(3), "rsi", ax=ax) is ax
    _, ax = plt.subplots()
    assert plots.layer_means(synthetic(3, layers=2), ax=ax) is ax


def test_overview_has_a_panel_for_every_quantity():
    figure = plots.path_geometry(synthetic(4))
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert len(set(titles)) == len(QUANTITIES)
    assert figure.get_suptitle() == "digits.zarr, $x^*$: final"
    # The last place is for the legend.
    legend = figure.axes[-1].get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 3


def test_overview_can_drop_the_final_epoch():
    figure = plots.path_geometry(synthetic(4), final="drop")
    assert all(len(bars(ax)) == 3 for ax in figure.axes[:5])


def mesh(ax: Axes) -> QuadMesh:
    [artist] = [c for c in ax.collections if isinstance(c, QuadMesh)]
    return artist


def test_layer_means_shows_layers_by_epochs():
    means = synthetic(4, layers=3)
    means["gamma"][:] = np.arange(12).reshape(4, 3)
    ax = plots.layer_means(means)
    np.testing.assert_array_equal(mesh(ax).get_array(), means.gamma.values.T)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["block.0.weight", "block.1.weight", "block.2.weight"]
    # The first layer is on top.
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_xlabel() == "epoch"
    assert "by layer" in ax.get_title()
    [_, colorbar] = ax.figure.axes
    assert colorbar.get_ylabel() == r"$\gamma$"


def test_order_of_dimensions_does_not_matter():
    means = synthetic(4, layers=3)
    means["gamma"][:] = np.arange(12).reshape(4, 3)
    image, transposed = (
        mesh(plots.layer_means(ds)).get_array()
        for ds in (means, means.transpose("layer", "epoch"))
    )
    np.testing.assert_array_equal(image, transposed)


def test_signed_values_are_coloured_around_zero():
    signed = mesh(plots.layer_means(synthetic(5, layers=2, negative=True)))
    assert signed.norm.vmin == -signed.norm.vmax  # type: ignore[operator]
    # The last epoch does not set the scale; earlier values are from -2 to 1.
    assert signed.norm.vmax <= 2.0  # type: ignore[operator]
    positive = mesh(plots.layer_means(synthetic(5, layers=2)))
    assert positive.norm.vmin == 0
    assert positive.cmap.name != signed.cmap.name


def test_noise_of_one_layer_does_not_set_the_scale():
    means = synthetic(5, layers=3)
    means["gamma"][:, 2] = 400
    means["gamma_stderr"][:, 2] = 300
    assert mesh(plots.layer_means(means)).norm.vmax <= 4  # type: ignore[operator]
    means["gamma_stderr"][:] = 300
    assert mesh(plots.layer_means(means)).norm.vmax > 4  # type: ignore[operator]


def test_means_below_two_standard_errors_are_crossed_out():
    means = synthetic(4, layers=3)
    means["gamma"][1, 2] = -0.49
    means["gamma"][2, 0] = 0.49
    means["gamma"][0, 0] = 0.51
    means["gamma"][0, 1] = -0.51
    ax = plots.layer_means(means)
    [crosses] = ax.lines
    assert {tuple(point) for point in np.asarray(crosses.get_xydata()).tolist()} == {
        (1, 2),
        (2, 0),
    }


@pytest.mark.parametrize("n_epochs", [1, 2, 5])
def test_layer_means_can_be_saved(n_epochs: int, tmp_path: Path):
    plots.layer_means(synthetic(n_epochs, layers=2))
    plt.savefig(tmp_path / "layers.png")
    assert plt.imread(tmp_path / "layers.png").std() > 0.01


def test_figures_of_a_run_are_saved_without_a_warning(
    example_run: Path, tmp_path: Path
):
    run = trajstore.open_run(example_run)
    means = analyzers.epoch_means(analyzers.path_geometry(run)).compute()
    plots.path_geometry(means).savefig(tmp_path / "overview.png")
    by_layer = analyzers.epoch_means(analyzers.path_geometry(run, layers=True))
    for name in ("gamma", "distance"):
        plots.layer_means(by_layer.compute(), name)
        plt.savefig(tmp_path / f"{name}.png")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 3


def excess_of(means: xr.Dataset) -> xr.Dataset:
    """Return means as those of an excess, whose values are those of gamma."""
    endings = ("", "_stderr", "_min", "_max")
    held = {f"excess{end}": means[f"gamma{end}"] for end in endings}
    return xr.Dataset(held, attrs=means.attrs)


def test_excess_of_layers_is_drawn():
    ax = plots.layer_means(excess_of(synthetic(4, layers=3)), "excess")
    assert mesh(ax).get_array().shape == (3, 4)  # type: ignore[union-attr]
    assert "excess" in ax.get_title()
    assert ax.figure.axes[1].get_ylabel() == r"$\gamma - \gamma_0$"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: plots.layer_means(synthetic(4, layers=2), "excess"),
            r"No quantity 'excess' in the means; they have .*null= the geometry of a",
        ),
        (lambda: plots.epoch_means(synthetic(4), "excess"), "Take the excess first"),
        (lambda: plots.epoch_means(synthetic(4), "cosine"), r"Choose one of \['gamma'"),
        (
            lambda: plots.epoch_means(excess_of(synthetic(4))),
            r"they have \['excess'\]. Other",
        ),
        (lambda: plots.path_geometry(excess_of(synthetic(4))), "Other quantities"),
        (
            lambda: plots.layer_means(synthetic(4).rename(gamma="a")[["a"]]),
            r"No quantity 'gamma' in the means; they have \[\]. Give a result",
        ),
    ],
)
def test_a_quantity_that_means_lack_is_named(draw: Any, message: str):
    with pytest.raises(KeyError, match=message):
        draw()
    assert not plt.get_fignums()


def test_figure_of_layers_names_the_run_and_marks_the_epoch_of_the_target():
    means = synthetic(5, layers=2)
    [mark] = shades(ax := plots.layer_means(means))
    assert "digits.zarr, $x^*$: final\n(crosses" in ax.get_title()
    assert "hatched: final epoch" in ax.get_title()
    assert mark.get_x() == 3.5
    # A target inside the run.
    means["distance_min"][:] = np.array([3, 2, 0.1, 2, 3.0])[:, None]
    means["gamma"][2] = 50
    ax = plots.layer_means(means.assign_attrs(reference="snapshot warm"))
    assert "hatched: epoch closest to" in ax.get_title()
    [mark] = shades(ax, plots_module.NEAR_NOTE)
    assert (mark.get_x(), mark.get_width()) == (1.5, 1.0)
    assert mesh(ax).norm.vmax == pytest.approx(100, rel=0.1)


def test_excess_relative_to_a_target_inside_the_run_marks_its_epoch():
    means = excess_of(synthetic(5)).assign_attrs(reference_epoch=2)
    [mark] = shades(plots.epoch_means(means, "excess"), plots_module.NEAR_NOTE)
    assert mark.get_x() == 1.5
