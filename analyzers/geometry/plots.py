"""Draw the results of `analyzers.path_geometry`, averaged over epochs or ranges of steps."""

from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyzers._colors import SIGNED, UNSIGNED
from analyzers._panels import draw_layer_names, drawable, layer_height, name_text
from analyzers._style import (
    draw_legend,
    draw_series,
    draw_zero,
    n_series,
    new_axes,
    new_figure,
    set_limits,
    set_log_scale,
)
from analyzers.geometry.time_axis import edges_of, time_of

LABELS: Final = {
    "gamma": r"$\gamma$",
    "rsi": "RSI",
    "eb": "EB",
    "lolr": "loLR",
    "distance": r"$|x_k - x^*|$",
}
"""Axis labels of the quantities."""

ALL_LABELS: Final = LABELS | {"excess": r"$\gamma - \gamma_0$"}

TITLES: Final = {
    "gamma": "cosine of gradient and $x - x^*$",
    "rsi": "restricted secant inequality",
    "eb": "error bound",
    "lolr": "locally optimal learning rate",
    "distance": "distance to $x^*$",
}

ALL_TITLES: Final = TITLES | {"excess": "excess of $\\gamma$ over a null model"}

LOG_QUANTITIES: Final = ("rsi", "eb")
"""Quantities that all figures show on a logarithmic axis."""

LOG_BY_EPOCH: Final = (*LOG_QUANTITIES, "distance")
"""Quantities that figures of one run show on a logarithmic axis: on a linear one, the end of the
distance is not seen."""

MAX_LABELS: Final = 22
"""Digits of all numbers on the horizontal axis of a panel."""

FINAL_NOTE: Final = "final epoch"
NEAR_NOTE: Final = "epoch closest to $x^*$"


def epoch_means(
    means: xr.Dataset,
    name: str = "gamma",
    *,
    final: Literal["shade", "drop"] = "shade",
    scale: Literal["linear", "log"] | None = None,
    band: bool = True,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the means of one quantity against the epoch, or against ranges of steps.

    The wide band reaches from the smallest to the largest value of a step in the epoch. The
    error bars show one standard error of the mean, not the spread of the steps. Call the
    function again with the same axes to compare runs.

    Parameters
    ----------
    means : xarray.Dataset
        As returned by `analyzers.epoch_means` or `analyzers.range_means`, without the dimension
        ``layer``.
    name : str, default: "gamma"
        The quantity: ``"gamma"``, ``"rsi"``, ``"eb"``, ``"lolr"`` or ``"distance"``; or
        ``"excess"`` for means of `analyzers.excess_gamma`.
    final : {"shade", "drop"}, default: "shade"
        Treatment of the epoch closest to x*, usually the final epoch. In that epoch, x* and
        the path are not independent, and most quantities blow up. ``"shade"`` shades the
        epoch and ignores it when choosing the limits of the axes; ``"drop"`` leaves it out.
    scale : {"linear", "log"}, optional
        Scale of the vertical axis. Default: logarithmic for RSI, EB and the distance. A logarithmic axis
        is linear around zero if a mean is not positive.
    band : bool, default: True
        Whether to draw the band. The bands of several runs may cover their lines.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : color, optional
        Colour of the line and the band. Default: the next colour of the axes.
    label : str, optional
        Text in the legend, such as the name of the run. Default: no legend; the line and
        the band have labels that say what they show.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.

    Raises
    ------
    KeyError
        If the means do not have the quantity.
    """
    _check_quantity(means, name)
    if ax is None:
        ax = new_axes()
    dim = time_of(means)
    near = _nearest(means)
    others = means if near is None else means.drop_isel({dim: near})
    shown = means if final == "shade" else others
    is_single = shown.sizes[dim] == 1
    low, high = _band(shown, name, band=band)
    band_label = "smallest to largest step" if label is None else None
    line_label = "mean, with its standard error" if label is None else drawable(label)
    drawn = draw_series(
        ax,
        edges_of(shown).mean(0),
        shown[name].values,
        stderr=shown[f"{name}_stderr"].values,
        low=None if is_single or not band else low,
        high=None if is_single or not band else high,
        color=color,
        label=line_label,
        band_label=band_label,
    )
    if is_single and band:
        start, stop = edges_of(shown)
        width = (stop - start) / 2
        center = (start + stop) / 2
        ax.bar(center, high - low, width, low, color=drawn, alpha=0.2, label=band_label)
    if near is not None and final == "shade":
        _shade(ax, means, near, color="0.88", zorder=0)
    _set_epochs(ax, edges_of(means))
    lines, (lows, highs) = others[name].values, _band(others, name, band=band)
    if scale == "log" or (scale is None and name in LOG_BY_EPOCH):
        set_log_scale(ax, lines, lows, highs)
    else:
        _set_limits(ax, lows, highs)
    ax.set(xlabel=dim, ylabel=ALL_LABELS[name], title=ALL_TITLES[name])
    if label is not None:
        draw_legend(ax)
    return ax


def _check_quantity(means: xr.Dataset, *names: str) -> None:
    """Raise if means lack quantities: those of the geometry have five, those of the excess one."""
    held = [name for name in ALL_LABELS if name in means]
    absent = [name for name in names if name not in held]
    if not absent:
        return
    advice = f"Choose one of {held}."
    if not held:
        advice = "Give a result of analyzers.epoch_means or analyzers.range_means."
    elif absent == ["excess"]:
        advice = (
            "Take the excess first: analyzers.epoch_means(analyzers.excess_gamma(geometry, run)), "
            "for layers with null= the geometry of a recorded walk by layer."
        )
    elif held == ["excess"]:
        advice = "Other quantities are in the means of the geometry itself."
    shown = repr(absent[0]) if len(absent) == 1 else str(absent)
    raise KeyError(f"No quantity {shown} in the means; they have {held}. {advice}")


def _nearest(means: xr.Dataset) -> int | None:
    """Return the index of the epoch closest to the target; None if no other is known."""
    dim = time_of(means)
    n = means.sizes[dim]
    if "distance_min" not in means:  # means of the excess
        inside = means.attrs.get(f"reference_{dim}")
        if inside is None:
            return n - 1 if n > 1 else None
        reached = np.flatnonzero(means[dim].values <= inside)
        return int(reached[-1]) if n > 1 and len(reached) else None
    # A sum over layers has a value where all layers do.
    least = means["distance_min"]
    distances = least.sum({"layer"} & {*least.dims}, skipna=False).values
    is_known = np.isfinite(distances)
    return int(np.nanargmin(distances)) if is_known.sum() > 1 else None


def _band(means: xr.Dataset, name: str, *, band: bool) -> tuple[Any, Any]:
    """Return the lower and upper edge of what is drawn: of the band, or of the error bars."""
    if band:
        return means[f"{name}_min"].values, means[f"{name}_max"].values
    value, stderr = means[name].values, means[f"{name}_stderr"].fillna(0).values
    return value - stderr, value + stderr


def _shade(ax: Axes, means: xr.Dataset, near: int, **style: Any) -> None:
    """Mark the epoch closest to the target; the legend names it once."""
    start, stop = edges_of(means)[:, near]
    is_last = near == means.sizes[time_of(means)] - 1
    is_final = is_last and means.attrs.get("reference") == "final"
    label = FINAL_NOTE if is_final else NEAR_NOTE
    if time_of(means) == "step":
        label = label.replace("epoch", "steps")
    if label in ax.get_legend_handles_labels()[1]:
        label = "_nolegend_"
    ax.axvspan(start, stop, label=label, **style)


def _set_epochs(ax: Axes, edges: Any) -> None:
    """Show all epochs of all lines on the horizontal axis."""
    first, last = float(edges[0, 0]), float(edges[1, -1])
    if n_series(ax) > 1:
        first, last = min(first, ax.get_xlim()[0]), max(last, ax.get_xlim()[1])
    ax.set_xlim(first, last)
    # Numbers of steps are long, and panels narrow.
    n_ticks = MAX_LABELS // max(len(f"{last:.0f}"), 1)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=min(n_ticks, 9), integer=True))


def _set_limits(ax: Axes, lowest: Any, highest: Any) -> None:
    """Set limits that show the whole band and zero, unless the band has no values."""
    lowest, highest = lowest[np.isfinite(lowest)], highest[np.isfinite(highest)]
    if not len(lowest) or not len(highest):
        return
    low, high = float(lowest.min()), float(highest.max())
    margin = 0.05 * (high - low) or 1.0
    set_limits(ax, low - margin if low < 0 else 0.0, high + margin)
    if low < 0:
        draw_zero(ax)


def path_geometry(
    means: xr.Dataset,
    *,
    final: Literal["shade", "drop"] = "shade",
    band: bool = True,
) -> Figure:
    """Draw the means of all quantities against the epoch, with a panel for each quantity.

    Parameters
    ----------
    means : xarray.Dataset
        As returned by `analyzers.epoch_means` or `analyzers.range_means`, without the dimension
        ``layer``.
    final : {"shade", "drop"}, default: "shade"
        Treatment of the epoch closest to x*, as in `epoch_means`.
    band : bool, default: True
        Whether to draw bands from the smallest to the largest step.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure.

    Raises
    ------
    KeyError
        If the means do not have the quantity.
    """
    _check_quantity(means, *LABELS)
    figure, axes = new_figure(2, 3, figsize=(12, 6.5))
    for name, ax in zip(LABELS, axes.flat, strict=False):
        epoch_means(means, name, final=final, band=band, ax=ax)
    legend = axes.flat[-1]
    legend.axis("off")
    legend.legend(
        *axes.flat[0].get_legend_handles_labels(), loc="center", frameon=False
    )
    figure.suptitle(_subject(means))
    return figure


def _subject(means: xr.Dataset) -> str:
    """Return the names of the run and of the target."""
    reference = means.attrs.get("reference", "")
    run = Path(means.attrs.get("run", "")).name
    return f"{name_text(run)}, $x^*$: {name_text(reference)}"


def layer_means(
    means: xr.Dataset,
    name: str = "gamma",
    *,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the means of one quantity as an image, with layers as rows and epochs as columns.

    Crosses mark means that are smaller than two standard errors, and hatching the epoch closest to
    x*, usually the final epoch, which does not set the colours.

    Parameters
    ----------
    means : xarray.Dataset
        As returned by `analyzers.epoch_means` or `analyzers.range_means` for a geometry with
        ``layers=True``.
    name : str, default: "gamma"
        The quantity: ``"gamma"``, ``"rsi"``, ``"eb"``, ``"lolr"`` or ``"distance"``;
        or ``"excess"`` for means of `analyzers.excess_gamma`, whose `null` is the geometry of a
        recorded walk by layer.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure, taller for more layers.
    color : str or matplotlib.colors.Colormap, optional
        Colour map. Default: red for negative and blue for positive values, or viridis if no
        value is negative.
    label : str, optional
        Label of the colour bar. Default: the symbol of the quantity.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.

    Raises
    ------
    KeyError
        If the means do not have the quantity.
    """
    _check_quantity(means, name)
    dim = time_of(means)
    values = means[name].transpose("layer", dim)
    n_layers = values.sizes["layer"]
    if ax is None:
        ax = new_axes(figsize=(8, layer_height(n_layers)))
    unsure = abs(values) < 2 * means[f"{name}_stderr"].transpose("layer", dim)
    near = _nearest(means)
    others = values if near is None else values.drop_isel({dim: near})
    sure = others.where(~unsure)
    # If the noise of one layer set the scale, all other layers would be pale.
    largest = float(abs(sure if sure.notnull().any() else others).quantile(0.98)) or 1.0
    signed = bool((values < 0).any())
    middles = edges_of(means).mean(0)
    image = ax.pcolormesh(
        middles,
        range(n_layers),
        values,
        cmap=color or (SIGNED if signed else UNSIGNED),
        vmin=-largest if signed else 0,
        vmax=largest,
        shading="nearest",
    )
    text = ALL_LABELS[name] if label is None else drawable(label)
    ax.figure.colorbar(image, ax=ax, label=text, extend="both")
    layer, epoch = unsure.values.nonzero()
    ax.plot(
        middles[epoch],
        layer,
        "x",
        color="0.4",
        markersize=3,
        markeredgewidth=0.6,
    )
    if near is not None:
        style = {"facecolor": "none", "edgecolor": "0.4", "hatch": "///"}
        _shade(ax, means, near, linewidth=0, **style)
    draw_layer_names(ax, means["layer"].values)
    ax.invert_yaxis()
    notes = ["crosses: below two standard errors"]
    if near is not None:
        [hatched] = ax.get_legend_handles_labels()[1]
        notes.append(f"hatched: {hatched}")
    ax.set_xlabel(dim)
    ax.set_title(
        f"{ALL_TITLES[name]} by layer\n{_subject(means)}\n({'; '.join(notes)})",
        fontsize="medium",
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax
