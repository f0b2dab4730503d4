"""Draw the zigzag geometry of a run, of its layers and of its branches."""

from pathlib import Path
from typing import Any, Final

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyzers._panels import draw_layer_names, layer_height, name_text, ordered_colors

COLORS: Final = {"zigzag": "C3", "neither": "0.6", "smooth": "C0"}
SHARES: Final = {
    "step_share": "steps",
    "path_share": "path length",
    "displacement_share": "net displacement²",
    "decrease_share": "decrease of loss",
}
COSINE: Final = "cosine of adjacent gradients"


def zigzag(segments: xr.Dataset, curve: xr.Dataset, *, title: str = "") -> Figure:
    """Draw the cosines of a run, its loss, the shares of each kind of step, and the lag curve.

    Parameters
    ----------
    segments : xarray.Dataset
        As returned by `analyzers.zigzag_segments`.
    curve : xarray.Dataset
        As returned by `analyzers.lag_curve`.
    title : str, default: ""
        Title of the figure; the name of the run if empty.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure.
    """
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.5), layout="constrained")
    cosine_panel(segments, ax=axes[0, 0])
    _loss(segments, axes[1, 0])
    share_bars(segments, ax=axes[0, 1])
    _lag_curve(curve, axes[1, 1])
    figure.suptitle(title or name_text(Path(segments.attrs["run"]).name))
    return figure


def cosine_panel(segments: xr.Dataset, *, ax: Axes, title: str = COSINE) -> Axes:
    """Draw the cosine of every step, and the running median that decides the step's kind.

    Parameters
    ----------
    segments : xarray.Dataset
        As returned by `analyzers.zigzag_segments`.
    ax : matplotlib.axes.Axes
        Axes to draw on.
    title : str
        Title of the axes.

    Returns
    -------
    matplotlib.axes.Axes
        The same axes.
    """
    step = segments["step"].values
    _shade(segments, ax)
    ax.plot(step, segments["cosine"], ".", color="0.55", markersize=2.5, label="step")
    median = segments["running_cosine"]
    ax.plot(step, median, color="k", linewidth=1.1, label="running median")
    for sign in (-1, 1):
        level = sign * segments.attrs["threshold"]
        ax.axhline(level, color="0.4", linewidth=0.7, linestyle=":")
    ax.axhline(0, color="0.5", linewidth=0.7)
    ax.set(ylim=(-1.08, 1.08), xlabel="step", ylabel="cosine")
    ax.set_title(title, fontsize="medium")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    return ax


def share_bars(segments: xr.Dataset, *, ax: Axes) -> Axes:
    """Draw each kind's share of the steps, path length, displacement and loss decrease.

    Parameters
    ----------
    segments : xarray.Dataset
        As returned by `analyzers.zigzag_segments`.
    ax : matplotlib.axes.Axes
        Axes to draw on.

    Returns
    -------
    matplotlib.axes.Axes
        The same axes.
    """
    names = [name for name in SHARES if name in segments]
    position, height = np.arange(len(names)), 0.26
    for i, (kind, color) in enumerate(COLORS.items()):
        shares = segments.sel(kind=kind)
        values = [float(shares[name]) for name in names]
        errors = [float(shares.get(f"{name}_stderr", 0.0)) for name in names]
        ax.barh(
            position + (i - 1) * height,
            values,
            height,
            xerr=errors,
            color=color,
            error_kw={"elinewidth": 0.9},
            label=kind,
        )
    ax.set_yticks(position, [SHARES[name] for name in names])
    # The axis points downwards, and leaves room for the legend.
    ax.set_ylim(len(names) - 0.5, -0.95)
    ax.axvline(0, color="0.5", linewidth=0.7)
    ax.set_xlabel("share")
    ax.set_title("share of each kind", fontsize="medium")
    ax.legend(fontsize="small", frameon=False, ncols=3, loc="upper center")
    return ax


def layer_cosines(layers: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the cosines as an image, with layers as rows and steps as columns.

    Parameters
    ----------
    layers : xarray.Dataset
        As returned by `analyzers.zigzag_layers`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure, taller for more layers.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    n_layers = layers.sizes["layer"]
    if ax is None:
        size = (8, layer_height(n_layers))
        _, ax = plt.subplots(figsize=size, layout="constrained")
    image = ax.pcolormesh(
        layers["first"],
        range(n_layers),
        layers["cosine"].transpose("layer", "part"),
        cmap="RdBu",
        vmin=-1,
        vmax=1,
        shading="nearest",
    )
    ax.figure.colorbar(image, ax=ax, label="cosine")
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
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.8), layout="constrained")
    for i, color in enumerate(ordered_colors(branches.sizes["branch"])):
        branch = branches.isel(branch=i)
        label = "parent" if i == 0 else f"lr x {float(branch['lr_scale']):g}"
        for name, ax in zip(("path", "lr_time"), axes[0], strict=True):
            ax.fill_between(
                branch[name],
                branch["cosine_low"],
                branch["cosine_high"],
                color=color,
                alpha=0.15,
                lw=0,
            )
            ax.plot(branch[name], branch["cosine"], color=color, label=label, lw=1.3)
        axes[1, 0].step(
            branch["cosine_bin"], branch["histogram"], color=color, where="mid", lw=1.3
        )
    for ax, xlabel in zip(
        axes[0], ("path length since branching", "sum of learning rates"), strict=True
    ):
        ax.axhline(0, color="0.5", linewidth=0.7)
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
            color=f"C{i}",
            error_kw={"elinewidth": 0.9},
            label=SHARES[name],
        )
    labels = ["parent", *(f"x {s:g}" for s in branches["lr_scale"].values[1:])]
    ax.set_xticks(position, labels)
    ax.axhline(0, color="0.5", linewidth=0.7)
    ax.margins(y=0.25)
    ax.set(xlabel="learning rate", ylabel="share")
    ax.set_title("share of zigzag", fontsize="medium")
    ax.legend(fontsize="small", frameon=False, ncols=3, loc="upper center")


def _loss(segments: xr.Dataset, ax: Axes) -> None:
    ax.set_title("loss", fontsize="medium")
    if "smooth_loss" not in segments:
        ax.text(0.5, 0.5, "no loss was requested", ha="center", va="center")
        ax.set(xticks=[], yticks=[])
        return
    loss = segments["smooth_loss"]
    _shade(segments, ax)
    ax.plot(segments["step"], loss, color="k", linewidth=1.1)
    if bool((loss.dropna("step") > 0).all()):
        ax.set_yscale("log")
    n = segments.attrs["smoothing"]
    ax.set(xlabel="step", ylabel="loss" if n == 1 else f"loss, mean of {n} steps")


def _shade(segments: xr.Dataset, ax: Axes) -> None:
    """Colour the background of steps by their kind."""
    step, labels = segments["step"].values, segments["label"].values
    for kind, color in ((-1, COLORS["zigzag"]), (1, COLORS["smooth"])):
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


def _lag_curve(curve: xr.Dataset, ax: Axes) -> None:
    ax.errorbar(
        curve["lag"],
        curve["cosine"],
        curve["cosine_stderr"],
        color="C0",
        marker=".",
        elinewidth=0.9,
        lw=1.1,
    )
    ax.axhline(0, color="0.5", linewidth=0.7)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="steps between the gradients", ylabel="mean cosine")
    ax.set_title("gradients further apart, mean over the run", fontsize="medium")
