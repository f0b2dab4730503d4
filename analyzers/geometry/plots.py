"""Draw the results of `analyzers.path_geometry`, averaged over epochs."""

import math
from pathlib import Path
from typing import Final, Literal

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyzers._panels import draw_layer_names, layer_height, name_text

LABELS: Final = {
    "gamma": r"$\gamma$",
    "rsi": "RSI",
    "eb": "EB",
    "lolr": "loLR",
    "distance": r"$|x_k - x^*|$",
}
"""Axis labels of the quantities."""

TITLES: Final = {
    "gamma": "cosine of gradient and $x - x^*$",
    "rsi": "restricted secant inequality",
    "eb": "error bound",
    "lolr": "locally optimal learning rate",
    "distance": "distance to $x^*$",
}

FINAL_NOTE: Final = "final epoch"
NEAR_NOTE: Final = "epoch closest to $x^*$"


def quantity(
    means: xr.Dataset,
    name: str,
    *,
    final: Literal["shade", "drop"] = "shade",
    ax: Axes | None = None,
) -> Axes:
    """Draw the means of one quantity against the epoch.

    The wide band reaches from the smallest to the largest value of a step in the epoch. The
    error bars show one standard error of the mean, not the spread of the steps.

    Parameters
    ----------
    means : xarray.Dataset
        As returned by `analyzers.epoch_means`, without the dimension ``layer``.
    name : str
        The quantity: ``"gamma"``, ``"rsi"``, ``"eb"``, ``"lolr"`` or ``"distance"``.
    final : {"shade", "drop"}, default: "shade"
        Treatment of the epoch closest to x*, usually the final epoch. In that epoch, x* and
        the path are not independent, and most quantities blow up. ``"shade"`` shades the
        epoch and ignores it when choosing the limits of the axes; ``"drop"`` leaves it out.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    n_epochs = means.sizes["epoch"]
    near = int(np.argmin(means["distance_min"].fillna(np.inf).values))
    others = means.drop_isel(epoch=near) if n_epochs > 1 else means
    shown = means if final == "shade" else others
    epoch = shown["epoch"].values
    low, high = shown[f"{name}_min"], shown[f"{name}_max"]
    label = "smallest to largest step"
    if shown.sizes["epoch"] > 1:
        ax.fill_between(epoch, low, high, color="C0", alpha=0.2, lw=0, label=label)
    else:
        ax.bar(epoch, high - low, 0.5, low, color="C0", alpha=0.2, label=label)
    ax.errorbar(
        epoch,
        shown[name],
        yerr=shown[f"{name}_stderr"],
        color="C0",
        ecolor="C3",
        elinewidth=1.5,
        marker=".",
        markersize=4,
        linewidth=1,
        label="mean, with its standard error",
    )
    ax.set_xlim(float(means["epoch"][0]) - 0.5, float(means["epoch"][-1]) + 0.5)
    _set_limits(ax, others[f"{name}_min"], others[f"{name}_max"])
    if final == "shade" and n_epochs > 1:
        middle = float(means["epoch"][near])
        label = FINAL_NOTE if means.attrs.get("reference") == "final" else NEAR_NOTE
        ax.axvspan(middle - 0.5, middle + 0.5, color="0.85", zorder=0, label=label)
    ax.set(xlabel="epoch", ylabel=LABELS[name], title=TITLES[name])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def _set_limits(ax: Axes, lowest: xr.DataArray, highest: xr.DataArray) -> None:
    """Set limits that show the whole band and zero, unless the band has no values."""
    low, high = float(lowest.min()), float(highest.max())
    margin = 0.05 * (high - low) or 1.0
    if math.isfinite(margin):
        ax.set_ylim(low - margin if low < 0 else 0, high + margin)
    if low < 0:
        ax.axhline(0, color="0.5", linewidth=0.8, zorder=0.5)


def path_geometry(
    means: xr.Dataset, *, final: Literal["shade", "drop"] = "shade"
) -> Figure:
    """Draw the means of all quantities against the epoch, with a panel for each quantity.

    Parameters
    ----------
    means : xarray.Dataset
        As returned by `analyzers.epoch_means`, without the dimension ``layer``.
    final : {"shade", "drop"}, default: "shade"
        Treatment of the epoch closest to x*, as in `quantity`.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure.
    """
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    for name, ax in zip(LABELS, axes.flat, strict=False):
        quantity(means, name, final=final, ax=ax)
    legend = axes.flat[-1]
    legend.axis("off")
    legend.legend(
        *axes.flat[0].get_legend_handles_labels(), loc="center", frameon=False
    )
    reference = means.attrs.get("reference", "")
    run = Path(means.attrs.get("run", "")).name
    figure.suptitle(f"{name_text(run)}, $x^*$: {name_text(reference)}")
    return figure


def layer_image(
    means: xr.Dataset, name: str = "gamma", *, ax: Axes | None = None
) -> Axes:
    """Draw the means of one quantity as an image, with layers as rows and epochs as columns.

    Crosses mark means that are smaller than two standard errors.

    Parameters
    ----------
    means : xarray.Dataset
        As returned by `analyzers.epoch_means` for a geometry with ``layers=True``.
    name : str, default: "gamma"
        The quantity: ``"gamma"``, ``"rsi"``, ``"eb"``, ``"lolr"`` or ``"distance"``.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure, taller for more layers.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    values = means[name].transpose("layer", "epoch")
    n_layers = values.sizes["layer"]
    if ax is None:
        _, ax = plt.subplots(figsize=(8, layer_height(n_layers)), layout="constrained")
    unsure = abs(values) < 2 * means[f"{name}_stderr"].transpose("layer", "epoch")
    before = values.isel(epoch=slice(None, -1)) if values.sizes["epoch"] > 1 else values
    sure = before.where(~unsure)
    # If the noise of one layer set the scale, all other layers would be pale.
    largest = float(abs(sure if sure.notnull().any() else before).quantile(0.98))
    signed = bool((values < 0).any())
    image = ax.pcolormesh(
        means["epoch"],
        range(n_layers),
        values,
        cmap="RdBu_r" if signed else "viridis",
        vmin=-largest if signed else 0,
        vmax=largest,
        shading="nearest",
    )
    ax.figure.colorbar(image, ax=ax, label=LABELS[name], extend="both")
    layer, epoch = unsure.values.nonzero()
    ax.plot(
        means["epoch"].values[epoch],
        layer,
        "x",
        color="0.4",
        markersize=3,
        markeredgewidth=0.6,
    )
    draw_layer_names(ax, means["layer"].values)
    ax.invert_yaxis()
    ax.set(
        xlabel="epoch",
        title=f"{TITLES[name]} by layer\n(crosses: below two standard errors)",
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax
