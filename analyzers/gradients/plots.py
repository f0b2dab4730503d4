"""Draw the zigzag geometry of a run, of its layers and of its branches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyzers._colors import NEGATIVE, POSITIVE, SIGNED
from analyzers._panels import draw_layer_names, drawable, layer_height, name_text
from analyzers._style import (
    LINE_STYLES,
    draw_legend,
    draw_series,
    draw_zero,
    n_series,
    new_axes,
    new_figure,
    ordered_colors,
)

KINDS: Final = {
    "zigzag": (NEGATIVE, "//"),
    "neither": ("0.65", ""),
    "smooth": (POSITIVE, ".."),
}
"""Colour and hatching of each kind of segment."""

SHARES: Final = {
    "step_share": "steps",
    "path_share": "path length",
    "displacement_share": "net displacement²",
    "decrease_share": "decrease of loss",
}
COSINE: Final = "cosine of adjacent gradients"


def zigzag(
    segments: xr.Dataset, curve: xr.Dataset | None = None, *, title: str = ""
) -> Figure:
    """Draw the cosines of a run, its loss, the shares of each kind of step, and the lag curve.

    Parameters
    ----------
    segments : xarray.Dataset
        As returned by `analyzers.zigzag_segments`; or by `analyzers.zigzag`, whose cosines are
        drawn in a single panel, by layer if it has layers.
    curve : xarray.Dataset, optional
        As returned by `analyzers.lag_curve`. Default: no lag curve.
    title : str, default: ""
        Title of the figure; the name of the run if empty.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure.

    Raises
    ------
    KeyError
        If `segments` is a result of another function.
    """
    if "cosine" not in segments or "step" not in segments.dims:
        raise KeyError(
            f"No variable 'cosine' by step in the dataset; it has {list(segments.data_vars)} with "
            f"the dimensions {list(segments.dims)}. Give a result of analyzers.zigzag_segments, "
            "with that of analyzers.lag_curve, or a result of analyzers.zigzag."
        )
    name = title or name_text(Path(segments.attrs.get("run", "")).name)
    if "running_cosine" not in segments:
        alone = _cosines_of_steps(segments).get_figure(root=True)
        assert alone is not None
        alone.suptitle(name)
        return alone
    figure, axes = new_figure(2, 2, figsize=(11, 6.5))
    zigzag_segments(segments, ax=axes[0, 0])
    segment_losses(segments, ax=axes[1, 0])
    segment_shares(segments, ax=axes[0, 1])
    if curve is None:
        axes[1, 1].axis("off")
    else:
        lag_curve(curve, ax=axes[1, 1])
    figure.suptitle(name)
    return figure


def _cosines_of_steps(cosines: xr.Dataset) -> Axes:
    """Draw a result of `analyzers.zigzag`: points, or an image of layers."""
    if "layer" in cosines.dims:
        columns = cosines[["cosine"]].reset_coords(drop=True).rename(step="part")
        return zigzag_layers(
            columns.assign_coords(first=("part", cosines["step"].values))
        )
    ax = new_axes(figsize=(8, 3.6))
    ax.plot(cosines["step"], cosines["cosine"], ".", color="0.35", markersize=2.5)
    draw_zero(ax)
    ax.set(ylim=(-1.08, 1.08), xlabel="step", ylabel="cosine")
    ax.set_title(COSINE, fontsize="medium")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    return ax


def zigzag_segments(
    segments: xr.Dataset,
    *,
    title: str = COSINE,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the cosine of every step, and the running median that decides the step's kind.

    Parameters
    ----------
    segments : xarray.Dataset
        As returned by `analyzers.zigzag_segments`.
    title : str, optional
        Title of the axes.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : color, optional
        Colour of the running median. Default: black, and the next colours for runs drawn
        on the same axes.
    label : str, optional
        Text of the running median in the legend. Default: no legend.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    ax = new_axes() if ax is None else ax
    step = segments["step"].values
    _shade(segments, ax)
    cosines = segments["cosine"].values
    ax.plot(step, cosines, ".", color="0.55", markersize=2.5, label=_own("step", label))
    _draw_median(
        ax,
        step,
        segments["running_cosine"].values,
        color=color,
        label="running median" if label is None else drawable(label),
    )
    for sign in (-1, 1):
        level = sign * segments.attrs["threshold"]
        ax.axhline(level, color="0.4", linewidth=0.7, linestyle=":")
    draw_zero(ax)
    ax.set(ylim=(-1.08, 1.08), xlabel="step", ylabel="cosine")
    ax.set_title(title, fontsize="medium")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if label is not None:
        draw_legend(ax)
    return ax


def _own(text: str, label: str | None) -> str | None:
    """Return a text for the legend, unless the caller has labelled the line."""
    return text if label is None else None


def _draw_median(ax: Axes, x: Any, y: Any, *, color: Any, label: str | None) -> None:
    """Draw a line without markers; the first line of the axes is black."""
    if color is None and not n_series(ax):
        color = "k"
    draw_series(ax, x, y, color=color, has_markers=False, width=1.1, label=label)


def segment_losses(
    segments: xr.Dataset,
    *,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the smoothed loss of every step, and shade steps by their kind.

    Parameters
    ----------
    segments : xarray.Dataset
        As returned by `analyzers.zigzag_segments`. If it has no loss, the axes say so.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : color, optional
        Colour of the line. Default: black, and the next colours for runs drawn on the same
        axes.
    label : str, optional
        Text of the line in the legend. Default: no legend.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    ax = new_axes() if ax is None else ax
    ax.set_title("loss", fontsize="medium")
    if "smooth_loss" not in segments:
        ax.text(0.5, 0.5, "no loss was requested", ha="center", va="center")
        ax.set(xticks=[], yticks=[])
        return ax
    loss = segments["smooth_loss"]
    _shade(segments, ax)
    text = None if label is None else drawable(label)
    _draw_median(ax, segments["step"].values, loss.values, color=color, label=text)
    if bool((loss.dropna("step") > 0).all()):
        ax.set_yscale("log")
    n = segments.attrs["smoothing"]
    ax.set(xlabel="step", ylabel="loss" if n == 1 else f"loss, mean of {n} steps")
    draw_legend(ax)
    return ax


def segment_shares(
    segments: xr.Dataset,
    *,
    ax: Axes | None = None,
    color: Mapping[str, Any] | None = None,
    label: str | None = None,
) -> Axes:
    """Draw each kind's share of the steps, path length, displacement and loss decrease.

    Parameters
    ----------
    segments : xarray.Dataset
        As returned by `analyzers.zigzag_segments`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : mapping from str to color, optional
        Colours of the kinds ``"zigzag"``, ``"neither"`` and ``"smooth"``. Default: red,
        grey and blue, with different hatching.
    label : str, optional
        Text before the name of each kind in the legend, such as the name of the run.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    ax = new_axes() if ax is None else ax
    prefix = "" if label is None else f"{drawable(label)}: "
    names = [name for name in SHARES if name in segments]
    position, height = np.arange(len(names)), 0.26
    for i, (kind, (own_color, hatch)) in enumerate(KINDS.items()):
        shares = segments.sel(kind=kind)
        values = [float(shares[name]) for name in names]
        errors = [float(shares.get(f"{name}_stderr", 0.0)) for name in names]
        ax.barh(
            position + (i - 1) * height,
            values,
            height,
            xerr=errors,
            color=(color or {}).get(kind, own_color),
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
            error_kw={"elinewidth": 0.9},
            label=f"{prefix}{kind}",
        )
    ax.set_yticks(position, [SHARES[name] for name in names])
    # The axis points downwards, and leaves room for the legend.
    ax.set_ylim(len(names) - 0.5, -0.95)
    ax.axvline(0, color="0.5", linewidth=0.7)
    ax.set_xlabel("share")
    ax.set_title("share of each kind", fontsize="medium")
    ax.legend(fontsize="small", frameon=False, ncols=3, loc="upper center")
    return ax


def zigzag_layers(
    layers: xr.Dataset,
    *,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the cosines as an image, with layers as rows and steps as columns.

    Parameters
    ----------
    layers : xarray.Dataset
        As returned by `analyzers.zigzag_layers`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure, taller for more layers.
    color : str or matplotlib.colors.Colormap, optional
        Colour map. Default: red for negative and blue for positive cosines.
    label : str, optional
        Label of the colour bar. Default: cosine.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    n_layers = layers.sizes["layer"]
    if ax is None:
        ax = new_axes(figsize=(8, layer_height(n_layers)))
    image = ax.pcolormesh(
        layers["first"],
        range(n_layers),
        layers["cosine"].transpose("layer", "part"),
        cmap=color or SIGNED,
        vmin=-1,
        vmax=1,
        shading="nearest",
    )
    text = "cosine" if label is None else drawable(label)
    ax.figure.colorbar(image, ax=ax, label=text)
    draw_layer_names(ax, layers["layer"].values)
    ax.invert_yaxis()
    ax.set(xlabel="step")
    ax.set_title(f"{COSINE}, by layer", fontsize="medium")
    return ax


def compare_branches(branches: xr.Dataset, *, title: str = "") -> Figure:
    """Draw the cosines along the path, and their distribution, for each learning rate.

    Parameters
    ----------
    branches : xarray.Dataset
        As returned by `analyzers.compare_branches`.
    title : str, default: ""
        Title of the figure; the name of the parent if empty.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure.
    """
    figure, axes = new_figure(2, 2, figsize=(11, 6.8))
    for i, color in enumerate(ordered_colors(branches.sizes["branch"])):
        branch = branches.isel(branch=i)
        label = "parent" if i == 0 else f"lr x {float(branch['lr_scale']):g}"
        style = LINE_STYLES[i % len(LINE_STYLES)]
        for name, ax in zip(("path", "lr_time"), axes[0], strict=True):
            ax.fill_between(
                branch[name],
                branch["cosine_low"],
                branch["cosine_high"],
                color=color,
                alpha=0.15,
                lw=0,
            )
            line = {"color": color, "linestyle": style, "lw": 1.3}
            ax.plot(branch[name], branch["cosine"], label=label, **line)
        axes[1, 0].step(branch["cosine_bin"], branch["histogram"], where="mid", **line)
    for ax, xlabel in zip(
        axes[0], ("path length since branching", "sum of learning rates"), strict=True
    ):
        draw_zero(ax)
        ax.set(ylim=(-1.08, 1.08), xlabel=xlabel, ylabel="cosine")
    axes[0, 0].legend(fontsize="small", frameon=False)
    axes[0, 0].set_title(f"{COSINE}: median and quartiles", fontsize="medium")
    axes[0, 1].set_title("the same, by sum of learning rates", fontsize="medium")
    axes[1, 0].set(xlabel="cosine", ylabel="share of steps")
    axes[1, 0].set_title("distribution", fontsize="medium")
    _branch_shares(branches, axes[1, 1])
    parent = name_text(Path(branches.attrs["run"]).name)
    figure.suptitle(title or f"{parent} and its branches")
    return figure


def _branch_shares(branches: xr.Dataset, ax: Axes) -> None:
    position, width = np.arange(branches.sizes["branch"]), 0.26
    shares = branches.sel(kind="zigzag")
    names = [name for name in SHARES if name in branches]
    for i, name in enumerate(names):
        errors: Any = shares.get(f"{name}_stderr")
        ax.bar(
            position + (i - (len(names) - 1) / 2) * width,
            shares[name],
            width,
            yerr=errors,
            color=f"{0.25 + 0.2 * i:.2f}",
            error_kw={"elinewidth": 0.9, "ecolor": "k"},
            label=SHARES[name],
        )
    labels = ["parent", *(f"x {s:g}" for s in branches["lr_scale"].values[1:])]
    ax.set_xticks(position, labels)
    ax.axhline(0, color="0.5", linewidth=0.7)
    ax.margins(y=0.25)
    ax.set(xlabel="learning rate", ylabel="share")
    ax.set_title("share of zigzag", fontsize="medium")
    ax.legend(fontsize="small", frameon=False, ncols=3, loc="upper center")


def _shade(segments: xr.Dataset, ax: Axes) -> None:
    """Colour the background of steps by their kind."""
    step, labels = segments["step"].values, segments["label"].values
    for kind, color in ((-1, NEGATIVE), (1, POSITIVE)):
        ax.fill_between(
            step,
            0,
            1,
            where=labels == kind,
            step="mid",
            transform=ax.get_xaxis_transform(),
            color=color,
            alpha=0.16,
            lw=0,
        )
    ax.set_xlim(step[0] - 0.5, step[-1] + 0.5)


def lag_curve(
    curve: xr.Dataset,
    *,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the mean cosine of gradients against the number of steps between them.

    Parameters
    ----------
    curve : xarray.Dataset
        As returned by `analyzers.lag_curve`.
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
    draw_series(
        ax,
        curve["lag"].values,
        curve["cosine"].values,
        stderr=curve["cosine_stderr"].values,
        color=color,
        label=None if label is None else drawable(label),
    )
    draw_zero(ax)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="steps between the gradients", ylabel="mean cosine")
    ax.set_title("gradients further apart, mean over the run", fontsize="medium")
    draw_legend(ax)
    return ax
