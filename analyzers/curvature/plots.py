"""Figures of the sharpness, smoothness, convexity and scale invariance along a path."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from analyzers._panels import Curve, Panel, draw_layer_names, layer_height, name_text

MAX_POINTS: Final = 400
"""Largest number of points on a line; longer lines show means of neighbours."""


def edge_of_stability(found: xr.Dataset, *, title: str | None = None) -> Panel:
    """Make a panel of the sharpness and the stability threshold.

    Parameters
    ----------
    found : xarray.Dataset
        As returned by `analyzers.edge_of_stability`.
    title : str, optional
        Title of the panel. Default: the name of the run.

    Returns
    -------
    Panel
        A panel for `analyzers.plots.draw_panels`.
    """
    kind = "" if found.attrs["recorded_as"] == "sharpness" else "preconditioned "
    step = found["step"].values
    curves = (
        Curve(f"{kind}sharpness", step, found["sharpness"].values),
        Curve("threshold", step, found["threshold"].values, style="--"),
    )
    return Panel(
        title=name_text(Path(found.attrs["run"]).stem) if title is None else title,
        ylabel=f"{kind}sharpness",
        curves=curves,
        needs="sharpness",
        xlabel="step",
    )


def smoothness(found: Mapping[str, xr.Dataset], *, title: str) -> Panel:
    """Make a panel of the change of the gradient over the change of the parameters.

    Parameters
    ----------
    found : mapping from str to xarray.Dataset
        Results to draw, by label. Each is a result of `analyzers.smoothness` without
        layers, or of `analyzers.edge_of_stability`, of which the sharpness is drawn.
    title : str
        Title of the panel.

    Returns
    -------
    Panel
        A panel for `analyzers.plots.draw_panels`.
    """
    curves = tuple(
        _averaged(label, data["smoothness" if "smoothness" in data else "sharpness"])
        for label, data in found.items()
    )
    return Panel(
        title=title,
        ylabel=r"$|g_k - g_{k-1}|\, /\, |x_k - x_{k-1}|$",
        curves=curves,
        needs="two steps",
        xlabel="step",
        is_robust=True,
    )


def convexity(found: xr.Dataset, *, title: str) -> Panel:
    """Make a panel of the slack of convexity: the loss minus the tangents.

    Parameters
    ----------
    found : xarray.Dataset
        As returned by `analyzers.convexity` or `analyzers.adjacent_convexity`.
    title : str
        Title of the panel.

    Returns
    -------
    Panel
        A panel for `analyzers.plots.draw_panels`. A slack below 0 violates convexity.
    """
    return Panel(
        title=title,
        ylabel="loss minus the tangent",
        curves=(_averaged("", found["slack"]),),
        needs="losses",
        xlabel="step",
        is_robust=True,
    )


def scale_invariance(found: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the largest and the root mean square cosine of every layer and its gradient.

    Parameters
    ----------
    found : xarray.Dataset
        As returned by `analyzers.scale_invariance`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: axes of a new figure, whose height grows with the number
        of layers.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.
    """
    n_layers = found.sizes["layer"]
    if ax is None:
        _, ax = plt.subplots(figsize=(7, layer_height(n_layers)), layout="constrained")
    rows = np.arange(n_layers)
    for name, marker, label in (
        ("cosine_max", "o", "largest"),
        ("cosine_rms", "|", "root mean square"),
    ):
        ax.plot(found[name].values, rows, marker, color="C0", label=label)
    tolerance = found.attrs["tolerance"]
    ax.axvline(tolerance, color="0.5", linestyle="--", linewidth=0.8, label="tolerance")
    ax.set_xscale("log")
    draw_layer_names(ax, found["layer"].values)
    ax.invert_yaxis()
    ax.set(xlabel="|cosine| of a layer and its gradient")
    ax.legend(fontsize="small", frameon=False, loc="upper left")
    return ax


def _averaged(label: str, values: xr.DataArray) -> Curve:
    """Return a curve of at most `MAX_POINTS` means, with the range of averaged values."""
    y, x = values.values, values["step"].values
    size = -(-len(y) // MAX_POINTS)
    if size <= 1:
        return Curve(label, x, y)
    n = len(y) // size * size
    groups = y[:n].reshape(-1, size)
    known = np.isfinite(groups).any(1)
    groups, x = groups[known], x[:n].reshape(-1, size).mean(1)[known]
    low, high = np.nanmin(groups, axis=1), np.nanmax(groups, axis=1)
    return Curve(label, x, np.nanmean(groups, axis=1), low=low, high=high)
