"""Test ``analyzers._style``, and that every plot function follows it."""

import inspect
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from analyzers import plots
from analyzers._colors import COLORS, NEGATIVE, POSITIVE, SIGNED
from analyzers._style import (
    LINE_STYLES,
    MARKERS,
    ShownOnce,
    draw_series,
    new_axes,
    set_log_scale,
)

FIGURES = {"aiming", "alpha_beta", "compare_branches", "linear_modes", "path_geometry"}
FIGURES |= {"compare", "draw_panels", "zigzag"}
CLASSES = {"Curve", "Panel"}
AXES = sorted({*plots.__all__} - FIGURES - CLASSES)


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def means(n_layers: int = 0) -> xr.Dataset:
    dims = ("epoch", "layer") if n_layers else ("epoch",)
    values = np.linspace(1.0, 2.0, 4 * max(n_layers, 1)).reshape(4, -1)
    values = values if n_layers else values[:, 0]
    variables = {
        f"{name}{ending}": (dims, values.copy())
        for name in ("gamma", "rsi", "eb", "lolr", "distance")
        for ending in ("", "_stderr", "_min", "_max")
    }
    attrs = {"run": "a.zarr", "reference": "final"}
    layers = {"layer": [f"l{i}" for i in range(n_layers)]} if n_layers else {}
    return xr.Dataset(variables, {"epoch": np.arange(4)} | layers, attrs)


def segments() -> xr.Dataset:
    steps = {
        name: ("step", np.array([0.6, -0.6, 0.1]))
        for name in ("cosine", "running_cosine")
    }
    shares = {
        name: ("kind", [0.2, 0.3, 0.5])
        for name in ("step_share", "path_share", "displacement_share")
    }
    return xr.Dataset(
        steps
        | shares
        | {"label": ("step", [1, -1, 0]), "smooth_loss": ("step", [3.0, 2.0, 1.0])},
        {"step": np.arange(3), "kind": ["zigzag", "neither", "smooth"]},
        {"threshold": 0.5, "smoothing": 1, "run": "a.zarr"},
    )


def along(**variables: list[float]) -> xr.Dataset:
    attrs = {"recorded_as": "sharpness", "run": "a.zarr"}
    data = {name: ("step", values) for name, values in variables.items()}
    return xr.Dataset(data, {"step": np.arange(3)}, attrs)


def modes() -> xr.Dataset:
    names = ("modes", "closed_form", "error")
    return xr.Dataset(
        {name: (("step", "mode"), np.ones((3, 2))) for name in names},
        {
            "time": ("step", [0.0, 1.0, 2.0]),
            "strength": ("mode", [2.0, 1.0]),
        },
        {"depth": 2},
    )


def feasible() -> tuple[xr.Dataset, xr.Dataset, list[xr.DataArray]]:
    alpha = np.array([0.5, 1.0, 1.5])
    margins = xr.Dataset(
        {"margin": (("alpha", "beta"), alpha[:, None] - np.array([0.9, 1.1]))},
        {"alpha": alpha, "beta": [0.0, 0.5]},
    )
    best = {"best_alpha": 1.0, "best_beta": 0.5}
    boundaries = [xr.DataArray([0.0, 0.1, 0.5], {"alpha": alpha}, "alpha")] * 3
    return margins, xr.Dataset(best, attrs={"min_gap": 0.1}), boundaries


def condition() -> tuple[list[xr.Dataset], xr.Dataset]:
    names = ("product", "product_stderr", "loss", "reference_loss")
    data = along(**{name: [1.0, 2.0, 0.5] for name in names})
    return [data.assign_attrs(optimal_loss=0.0)], feasible()[1]


def layers(**variables: list[float]) -> xr.Dataset:
    data = {name: ("layer", values) for name, values in variables.items()}
    return xr.Dataset(data, {"layer": ["a", "b"]}, {"tolerance": 1e-4})


def bounds() -> xr.Dataset:
    return xr.Dataset(
        {"mu": (("step", "delta"), [[1.0, 2.0], [3.0, 1.0]])},
        {"epoch": ("step", [0, 1]), "delta": [1.0, 2.0]},
        {"gradient": "minibatch"},
    )


def cosines() -> xr.Dataset:
    return xr.Dataset(
        {"cosine": (("layer", "part"), np.eye(2)), "first": ("part", [0, 5])},
        {"layer": ["a", "b"]},
    )


def lags() -> xr.Dataset:
    names = ("cosine", "cosine_stderr")
    return xr.Dataset({n: ("lag", [0.5, 0.2]) for n in names}, {"lag": [1, 2]})


def pca() -> xr.Dataset:
    return xr.Dataset(
        {
            "coordinate": (("point", "component"), np.eye(3)[:, :2]),
            "explained_variance_ratio": ("component", [0.7, 0.2]),
        },
        {
            "run": ("point", ["a", "a", "a"]),
            "kind": ("point", ["anchor", "anchor", "final"]),
            "step": ("point", [0, 1, 2]),
        },
    )


def apart() -> xr.Dataset:
    points = {"step": ("point", [0, 1]), "run": ("point", ["a", "a"])}
    others = {"other_step": ("other", [0, 1]), "other_run": ("other", ["a", "a"])}
    return xr.Dataset(
        {"distance": (("point", "other"), 1 - np.eye(2))}, points | others
    )


def plane() -> xr.Dataset:
    return xr.Dataset(
        {
            "loss": (("second", "first"), np.array([[1.0, 2.0], [3.0, 40.0]])),
            "explained_variance_ratio": ("component", [0.7, 0.2]),
        },
        {
            "first": [0.0, 1.0],
            "second": [0.0, 1.0],
            "point_first": ("point", [0.1, 0.9]),
            "point_second": ("point", [0.1, 0.8]),
        },
        {"projection_error": 0.01},
    )


def towards() -> xr.Dataset:
    return xr.Dataset(
        {"loss": (("epoch", "fraction"), np.array([[2.0, 1.0], [1.5, 1.0]]))},
        {"epoch": [0, 4], "fraction": [0.0, 1.0]},
    )


LINES: Mapping[str, Callable[[], tuple[Any, ...]]] = {
    "condition_of_steps": condition,
    "convexity": lambda: (along(slack=[1.0, -1.0, 2.0]),),
    "edge_of_stability": lambda: (along(sharpness=[1, 2, 3], threshold=[2, 2, 2]),),
    "epoch_means": lambda: (means(),),
    "lag_curve": lambda: (lags(),),
    "losses_towards": lambda: (towards(),),
    "mode_errors": lambda: (modes(),),
    "mode_trajectories": lambda: (modes(),),
    "path_pca": lambda: (pca(),),
    "polyak_lojasiewicz": lambda: (bounds(),),
    "scale_invariance": lambda: (layers(cosine_max=[0.1, 1], cosine_rms=[0.1, 1]),),
    "segment_losses": lambda: (segments(),),
    "smoothness": lambda: (along(smoothness=[1.0, 3.0, 2.0]),),
    "zigzag_segments": lambda: (segments(),),
}
IMAGES: Mapping[str, Callable[[], tuple[Any, ...]]] = {
    "feasible_set": feasible,
    "layer_means": lambda: (means(n_layers=2) - 1.5,),
    "zigzag_layers": lambda: (cosines(),),
}
OTHERS: Mapping[str, Callable[[], tuple[Any, ...]]] = {
    "losses_on_plane": lambda: (plane(),),
    "path_distances": lambda: (apart(),),
    "segment_shares": lambda: (segments(),),
}


def test_the_table_of_this_test_is_complete():
    assert sorted({*LINES, *IMAGES, *OTHERS}) == AXES


@pytest.mark.parametrize("name", AXES)
def test_axes_are_taken_and_returned(name: str):
    function = getattr(plots, name)
    for keyword in ("ax", "color", "label"):
        parameter = inspect.signature(function).parameters[keyword]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is None
    data = {**LINES, **IMAGES, **OTHERS}[name]()
    _, ax = plt.subplots()
    n_figures = len(plt.get_fignums())
    assert function(*data, ax=ax, label="mine") is ax
    assert len(plt.get_fignums()) == n_figures
    texts = [each.get_ylabel() for each in ax.figure.axes]
    texts += ax.get_legend_handles_labels()[1]
    assert any("mine" in text for text in texts)
    own = function(*data)
    assert isinstance(own.figure, ShownOnce)
    own.figure.canvas.draw()


@pytest.mark.parametrize("name", sorted(FIGURES - {"draw_panels", "compare_branches"}))
def test_figures_of_several_panels_are_shown_once(name: str):
    annotation = inspect.signature(getattr(plots, name)).return_annotation
    assert annotation is Figure


@pytest.mark.parametrize("name", LINES)
def test_lines_have_the_colour_asked_for(name: str):
    ax = getattr(plots, name)(*LINES[name](), color="#123456", label="a")
    colors = {to_rgb(line.get_color()) for line in ax.lines}
    assert to_rgb("#123456") in colors
    assert not colors & {to_rgb(color) for color in COLORS if color != "#000000"}


@pytest.mark.parametrize("name", IMAGES)
def test_red_is_negative_and_blue_positive_in_every_image(name: str):
    ax = getattr(plots, name)(*IMAGES[name]())
    [mesh] = [
        c for c in ax.collections if hasattr(c, "norm") and c.get_array() is not None
    ]
    assert mesh.get_cmap().name == SIGNED
    red, _, blue = to_rgb(mesh.to_rgba(-1e9))
    assert red > blue
    red, _, blue = to_rgb(mesh.to_rgba(1e9))
    assert blue > red
    other = getattr(plots, name)(*IMAGES[name](), color="cividis")
    names = {c.get_cmap().name for c in other.collections if c.get_array() is not None}
    assert names == {"cividis"}


def test_a_plane_of_losses_states_what_it_leaves_out():
    title = plots.losses_on_plane(plane(), pca()).get_title()
    assert "90.0% of the variance" in title
    assert "differ by up to 0.01" in title


def test_bars_are_red_for_zigzag_and_blue_for_smooth():
    bars = plots.segment_shares(segments()).patches
    colors = [to_rgb(bar.get_facecolor()) for bar in bars]
    assert colors[0] == to_rgb(NEGATIVE)
    assert colors[-1] == to_rgb(POSITIVE)
    assert len({bar.get_hatch() for bar in bars}) == 3


SERIES = ("epoch_means", "lag_curve", "edge_of_stability", "smoothness", "convexity")


@pytest.mark.parametrize("ours", [True, False], ids=["our axes", "given axes"])
@pytest.mark.parametrize("name", SERIES)
def test_runs_on_one_pair_of_axes_look_different(name: str, ours: bool):
    ax = new_axes() if ours else plt.subplots()[1]
    for i in range(4):
        getattr(plots, name)(*LINES[name](), ax=ax, label=f"run {i}")
    lines = [c.lines[0] for c in ax.containers if isinstance(c, ErrorbarContainer)]
    assert len(lines) == 4
    for look in ("color", "linestyle", "marker"):
        assert len({getattr(line, f"get_{look}")() for line in lines}) == 4
    legend = ax.get_legend()
    assert legend is not None
    shown = {text.get_text() for text in legend.get_texts()}
    assert {f"run {i}" for i in range(4)} <= shown


def test_many_runs_never_look_the_same():
    """The numbers of colours, line styles and markers have no common factor."""
    looks = {
        (COLORS[i % len(COLORS)], LINE_STYLES[i % len(LINE_STYLES)], i % len(MARKERS))
        for i in range(210)
    }
    assert len(looks) == 210


def luminance(color: str) -> float:
    """Return the relative luminance of a colour, as WCAG 2 defines it."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in to_rgb(color)
    ]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_the_first_colours_differ_in_grey_and_from_white():
    greys = [luminance(color) for color in COLORS]
    assert abs(greys[0] - greys[1]) > 0.2
    assert max(greys) < 0.55


def test_limits_hold_all_runs():
    small, large = means(), means() * 10
    large = large.assign_coords(epoch=large["epoch"] + 3).assign_attrs(small.attrs)
    for name in ("gamma", "rsi"):
        ax = plots.epoch_means(large, name)
        plots.epoch_means(small, name, ax=ax)
        assert ax.get_xlim() == (-0.5, 6.5)
        low, high = ax.get_ylim()
        # The first epoch of each is closest to its target and sets no limits.
        assert low <= float(small[name][1:].min())
        assert high >= float(large[name].max())


@pytest.mark.parametrize("name", ["rsi", "eb"])
def test_rsi_and_eb_have_a_logarithmic_axis(name: str):
    assert plots.epoch_means(means(), name).get_yscale() == "log"
    assert plots.epoch_means(means(), name, scale="linear").get_yscale() == "linear"
    assert plots.epoch_means(means()).get_yscale() == "linear"
    assert plots.epoch_means(means(), scale="log").get_yscale() == "log"
    data = means()
    data[name][1] = -1.0
    ax = plots.epoch_means(data, name)
    assert ax.get_yscale() == "symlog"
    assert ax.get_ylim()[0] < -1


def test_logarithmic_limits_cut_bands_but_not_lines():
    ax = new_axes()
    y = np.array([1.0, 2.0, 8.0])
    draw_series(ax, np.arange(3), y, low=y * 1e-9, high=y * 3)
    set_log_scale(ax, y, y * 1e-9, y * 3)
    low, high = ax.get_ylim()
    assert 0.05 < low < 0.1
    assert high > 24


@pytest.mark.parametrize("values", [[np.nan] * 3, [-1.0, -2.0, 0.0]])
def test_an_axis_without_positive_values_stays_linear(values: list[float]):
    ax, y = new_axes(), np.array(values)
    set_log_scale(ax, y, y, y)
    assert ax.get_yscale() == "linear"


def test_notebooks_show_a_figure_once(monkeypatch: pytest.MonkeyPatch):
    figure = plots.path_geometry(means())
    assert isinstance(figure, ShownOnce)
    other, _ = plt.subplots()
    for backend, is_open in (("agg", True), ("module://matplotlib_inline", False)):
        monkeypatch.setattr("matplotlib.get_backend", lambda name=backend: name)
        # The error leaves the figure to the formatters of IPython.
        with pytest.raises(NotImplementedError, match="formatters of IPython"):
            figure._ipython_display_()
        assert plt.gcf() is other
        assert plt.fignum_exists(figure.number) == is_open
    assert isinstance(pickle.loads(pickle.dumps(figure)), ShownOnce)


@pytest.mark.parametrize("layers", [False, True])
def test_cosines_of_steps_are_drawn_by_the_plot_of_their_name(layers: bool):
    dims = ("step", "layer") if layers else ("step",)
    cosine = np.linspace(-1, 1, 6).reshape(3, 2) if layers else np.linspace(-1, 1, 3)
    names = {"layer": ["a", "b"]} if layers else {}
    coordinates = {"step": [4, 5, 6], "epoch": ("step", [0, 0, 1])} | names
    data = xr.Dataset({"cosine": (dims, cosine)}, coordinates, {"run": "x/a.zarr"})
    figure = plots.zigzag(data)
    assert figure.get_suptitle() == "a.zarr"
    ax = figure.axes[0]
    if layers:
        np.testing.assert_array_equal(ax.collections[0].get_array(), cosine.T)
    else:
        np.testing.assert_array_equal(
            ax.lines[0].get_xydata(), np.c_[[4, 5, 6], cosine]
        )
    assert sum(each.axison for each in plots.zigzag(segments()).axes) == 3
    with pytest.raises(KeyError, match=r"No variable 'cosine' by step .*lag_curve"):
        plots.zigzag(lags())
