"""Figures of the sharpness, smoothness, convexity and scale invariance along a path."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analyzers._panels import (
    draw_layer_names,
    drawable,
    layer_height,
    name_text,
)
from analyzers._style import (
    Values,
    draw_legend,
    draw_series,
    draw_zero,
    new_axes,
    set_limits,
)

MAX_POINTS: Final = 400
"""Largest number of points on a line; longer lines show means of neighbours."""

ROBUST: Final = (2, 98)
"""Percentiles of the means that the vertical axis shows."""


def edge_of_stability(
    found: xr.Dataset,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the sharpness, and the stability threshold as a thin dotted line.

    Parameters
    ----------
    found : xarray.Dataset
        As returned by `analyzers.edge_of_stability`.
    title : str, optional
        Title of the axes. Default: the name of the run.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : color, optional
        Colour of both lines. Default: the next colour of the axes.
    label : str, optional
        Text of the sharpness in the legend, such as the name of the run. Default: what the
        lines show.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    ax = new_axes() if ax is None else ax
    kind = "" if found.attrs["recorded_as"] == "sharpness" else "preconditioned "
    step = found["step"].values
    name = f"{kind}sharpness"
    drawn = draw_series(
        ax,
        step,
        found["sharpness"].values,
        color=color,
        label=name if label is None else drawable(label),
    )
    threshold = found["threshold"].values
    text = "threshold" if label is None else f"threshold of {drawable(label)}"
    ax.plot(step, threshold, ":", color=drawn, linewidth=1.4, label=text)
    highest = np.concatenate([found["sharpness"].values, threshold])
    top = highest[np.isfinite(highest)].max(initial=0.0)
    set_limits(ax, 0.0, 1.25 * float(top) or 1.0)
    _finish(ax, name, name_text(Path(found.attrs["run"]).stem), title)
    return ax


def smoothness(
    found: xr.Dataset,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the change of the gradient over the change of the parameters, by step.

    Of more than `MAX_POINTS` steps, the line shows means of neighbours, and the band their
    range. The vertical axis shows 96 percent of the means.

    Parameters
    ----------
    found : xarray.Dataset
        A result of `analyzers.smoothness` without layers, or of
        `analyzers.edge_of_stability`, of which the sharpness is drawn.
    title : str, optional
        Title of the axes. Default: none.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : color, optional
        Colour of the line. Default: the next colour of the axes.
    label : str, optional
        Text of the line in the legend. Default: no legend.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    ax = new_axes() if ax is None else ax
    name = "smoothness" if "smoothness" in found else "sharpness"
    _draw_averaged(ax, found[name], color, label)
    _finish(ax, r"$|g_k - g_{k-1}|\, /\, |x_k - x_{k-1}|$", "", title)
    return ax


def convexity(
    found: xr.Dataset,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the slack of convexity: the loss minus the tangents, by step.

    A slack below 0 violates convexity. Lines and limits are those of `smoothness`.

    Parameters
    ----------
    found : xarray.Dataset
        As returned by `analyzers.convexity` or `analyzers.adjacent_convexity`.
    title : str, optional
        Title of the axes. Default: none.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : color, optional
        Colour of the line. Default: the next colour of the axes.
    label : str, optional
        Text of the line in the legend. Default: no legend.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    ax = new_axes() if ax is None else ax
    _draw_averaged(ax, found["slack"], color, label)
    _finish(ax, "loss minus the tangent", "", title)
    return ax


def _finish(ax: Axes, ylabel: str, own_title: str, title: str | None) -> None:
    """Set title and labels, and draw the legend."""
    ax.set(xlabel="step", ylabel=ylabel)
    ax.set_title(own_title if title is None else drawable(title), fontsize="medium")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    draw_legend(ax)


def scale_invariance(
    found: xr.Dataset,
    *,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the largest and the root mean square cosine of every layer and its gradient.

    Parameters
    ----------
    found : xarray.Dataset
        As returned by `analyzers.scale_invariance`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure, taller for more layers.
    color : color, optional
        Colour of the markers. Default: the next colour of the axes.
    label : str, optional
        Text before the description of each marker in the legend, such as the name of the
        run.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    n_layers = found.sizes["layer"]
    if ax is None:
        ax = new_axes(figsize=(7, layer_height(n_layers)))
    rows = np.arange(n_layers)
    prefix = "" if label is None else f"{drawable(label)}: "
    for name, marker, text in (
        ("cosine_max", "o", "largest"),
        ("cosine_rms", "|", "root mean square"),
    ):
        [line] = ax.plot(
            *(found[name].values, rows, marker), color=color, label=prefix + text
        )
        color = line.get_color()
    tolerance = found.attrs["tolerance"]
    ax.axvline(tolerance, color="0.5", linestyle="--", linewidth=0.8, label="tolerance")
    ax.set_xscale("log")
    draw_layer_names(ax, found["layer"].values)
    ax.invert_yaxis()
    ax.set(xlabel="|cosine| of a layer and its gradient")
    draw_legend(ax)
    return ax


def _draw_averaged(
    ax: Axes, values: xr.DataArray, color: Any, label: str | None
) -> None:
    """Draw at most `MAX_POINTS` means with the range of averaged values, and set limits."""
    x, y, low, high = _averaged(values)
    text = None if label is None else drawable(label)
    options: dict[str, Any] = {"color": color, "label": text, "low": low, "high": high}
    draw_series(ax, x, y, has_markers=label is not None, **options)
    known = y[np.isfinite(y)]
    if not len(known):
        return
    bottom, top = np.percentile(known, ROBUST)
    bottom, top = min(float(bottom), 0.0), max(float(top), 0.0)
    size = (top - bottom) or 1.0
    set_limits(ax, bottom - 0.04 * size * (bottom < 0), top + 0.2 * size)
    if bottom < 0:
        draw_zero(ax)


def _averaged(
    values: xr.DataArray,
) -> tuple[Values, Values, Values | None, Values | None]:
    """Return steps, at most `MAX_POINTS` means, and the range of averaged values if any."""
    y, x = values.values, values["step"].values
    size = -(-len(y) // MAX_POINTS)
    if size <= 1:
        return x, y, None, None
    n = len(y) // size * size
    groups = y[:n].reshape(-1, size)
    known = np.isfinite(groups).any(1)
    groups, x = groups[known], x[:n].reshape(-1, size).mean(1)[known]
    low, high = np.nanmin(groups, axis=1), np.nanmax(groups, axis=1)
    return x, np.nanmean(groups, axis=1), low, high
