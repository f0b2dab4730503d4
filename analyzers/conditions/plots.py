"""Figures of the alpha-beta, the aiming and the Polyak-Lojasiewicz condition."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyzers._colors import COLORS, SIGNED
from analyzers._panels import Curve, Panel, draw_panels, drawable, name_text
from analyzers._style import (
    LINE_STYLES,
    MARKERS,
    Values,
    draw_legend,
    new_axes,
    new_figure,
    ordered_colors,
)
from analyzers.conditions.arrays import largest_at_zero
from analyzers.geometry.time_axis import by_time, middles_of

EXCLUDED_COLOR: Final = "0.85"
"""Colour of the region alpha < beta + min_gap, whose pairs are not allowed."""

STDERR_COLOR: Final = COLORS[1]

SHOWN_SHARE: Final = 0.8
"""Share of the positive, and of the negative values that the ends of the colours show."""

MAX_LINEAR: Final = 0.01
"""Largest value of T up to which its axis is linear."""

AIMING_PANELS: Final = {
    "cosine": ("cosine of gradient and $x - x^*$", "cosine"),
    "theta": ("aiming", r"$\langle g_k, x_k - x^* \rangle / f(x_k)$"),
}
"""Title and axis label of each quantity."""


def alpha_beta(
    datasets: Sequence[xr.Dataset],
    margins: xr.Dataset,
    feasible: xr.Dataset,
    boundaries: Sequence[xr.DataArray],
) -> Figure:
    """Draw the feasible pairs, and T_k by step for the pair with the smallest alpha + beta.

    Parameters
    ----------
    datasets : sequence of xarray.Dataset
        Results of `analyzers.alpha_beta`, loaded.
    margins : xarray.Dataset
        As returned by `analyzers.margin`.
    feasible : xarray.Dataset
        As returned by `analyzers.feasible_set`.
    boundaries : sequence of xarray.DataArray
        Three results of `analyzers.smallest_beta`: for products one standard error smaller,
        for the estimated products, and for products one standard error larger.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure.
    """
    figure, [[left, right]] = new_figure(1, 2, figsize=(10, 4))
    feasible_set(margins, feasible, boundaries, ax=left)
    condition_of_steps(datasets, feasible, ax=right)
    return figure


def feasible_set(
    margins: xr.Dataset,
    feasible: xr.Dataset,
    boundaries: Sequence[xr.DataArray],
    *,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the smallest T on a grid, and the boundary of the feasible pairs.

    Parameters
    ----------
    margins, feasible, boundaries
        As in `alpha_beta`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : str or matplotlib.colors.Colormap, optional
        Colour map. Default: red where the condition fails, blue where it holds.
    label : str, optional
        Label of the colour bar. Default: the symbol of the smallest T.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    ax = new_axes() if ax is None else ax
    alpha, beta = margins["alpha"].values, margins["beta"].values
    top = alpha - feasible.attrs["min_gap"]
    values = margins["margin"].values.T
    shown = values[beta[:, None] <= top]
    # Each sign has its own colour scale, since positive margins are mostly much nearer to 0
    # than negative margins.
    largest, smallest = _end_of_scale(shown), -_end_of_scale(-shown)
    norm = TwoSlopeNorm(0, smallest or -largest, largest or -smallest)
    # Cells would have a jagged edge where the sign changes, because the colours of both signs differ
    # most there.
    image = ax.pcolormesh(
        *(alpha, beta, values),
        norm=norm,
        cmap=color or SIGNED,
        shading="gouraud",
        rasterized=True,
    )
    left, right = np.append(0.0, alpha), np.append(-feasible.attrs["min_gap"], top)
    ax.fill_between(left, right, beta[-1], color=EXCLUDED_COLOR, linewidth=0)
    ticks = sorted({smallest, smallest / 2, 0.0, largest / 2, largest})
    text = r"$\min_k T_k$" if label is None else drawable(label)
    bar = ax.figure.colorbar(image, ax=ax, label=text, ticks=ticks, extend="both")
    # On the other side, the text would read as that of the axes to the right.
    bar.ax.yaxis.set_label_position("left")
    bar.ax.set_yticklabels([f"{tick:.2g}" for tick in ticks])
    for boundary, format_, width, line_label in zip(
        boundaries,
        ("--", "-", "--"),
        (1.0, 1.6, 1.0),
        ("one standard error", "boundary", None),
        strict=True,
    ):
        lower = boundary.values.clip(min=0)
        line_color = STDERR_COLOR if format_ == "--" else "k"
        ax.plot(
            boundary["alpha"],
            lower,
            format_,
            color=line_color,
            lw=width,
            label=line_label,
        )
    if np.isfinite(feasible["best_alpha"]):
        best = _best(feasible)
        text = r"smallest $\alpha + \beta$"
        ax.plot(*best, "k*", markersize=9, label=text, clip_on=False)
        corners = (feasible.get(name, xr.DataArray([])) for name in ("alpha", "step"))
        at_zero = largest_at_zero(*(corner.values for corner in corners))
        if np.isfinite(at_zero):
            text = r"largest $\alpha$ at $\beta = 0$"
            ax.plot(at_zero, 0, "k^", markersize=7, label=text, clip_on=False)
        ax.legend(fontsize="small", loc="upper left")
    else:
        ax.set_title("no pair holds", fontsize="medium")
    ax.set(xlabel=r"$\alpha$", ylabel=r"$\beta$")
    ax.set(xlim=(0, alpha[-1]), ylim=(0, beta[-1]))
    return ax


def _end_of_scale(values: Values) -> float:
    """Return where the colours of positive values end, 0 if there are none."""
    # A few steps may have far larger values than the others.
    positive = values[values > 0]
    return float(np.quantile(positive, SHOWN_SHARE)) if len(positive) else 0.0


def _best(feasible: xr.Dataset) -> tuple[float, float]:
    return float(feasible["best_alpha"]), float(feasible["best_beta"])


def condition_of_steps(
    datasets: Sequence[xr.Dataset],
    feasible: xr.Dataset,
    *,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw T_k by step for the feasible pair with the smallest alpha + beta.

    Parameters
    ----------
    datasets, feasible
        As in `alpha_beta`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : color, optional
        Colour of all points. Default: another colour and marker for each run.
    label : str, optional
        Text of the points in the legend. Default: no legend.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    ax = new_axes() if ax is None else ax
    alpha, beta = _best(feasible)
    if not np.isfinite(alpha):
        ax.text(0.5, 0.5, "no pair holds", ha="center", va="center")
        ax.set(xticks=[], yticks=[])
        return ax
    linear, least = MAX_LINEAR, 0.0
    for i, dataset in enumerate(datasets):
        loss = dataset["loss"]
        margin = (
            dataset["product"]
            - alpha * (loss - dataset["reference_loss"])
            + beta * (loss - dataset.attrs["optimal_loss"])
        )
        sizes = abs(margin.values[np.isfinite(margin.values) & (margin.values != 0)])
        if len(sizes):
            least = min(least, float((margin - dataset["product_stderr"]).min()))
            linear = min(linear, 10 ** np.floor(np.log10(np.quantile(sizes, 0.1))))
        ax.errorbar(
            dataset["step"],
            margin,
            dataset["product_stderr"],
            fmt=MARKERS[i % len(MARKERS)],
            markersize=1.5,
            elinewidth=0.5,
            color=COLORS[i % len(COLORS)] if color is None else color,
            label=drawable(label) if label is not None and i == 0 else None,
        )
    ax.axhline(0, color="k", linewidth=0.8)
    ax.set_yscale("symlog", linthresh=float(linear))
    if least >= 0:
        ax.set_ylim(bottom=-linear)
    ax.set(xlabel="step k", ylabel=rf"$T_k({alpha:.3g}, {beta:.3g})$")
    draw_legend(ax)
    return ax


def aiming(aimed: xr.Dataset) -> Figure:
    """Draw the cosine and theta: the mean and the range of each within every epoch.

    A run with one epoch is divided into ranges of steps.

    Parameters
    ----------
    aimed : xarray.Dataset
        As returned by `analyzers.aiming`, loaded.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure.
    """
    by_epoch, time = by_time(aimed)
    panels = []
    for name, (title, ylabel) in AIMING_PANELS.items():
        values = by_epoch[name].groupby("epoch")
        mean = values.mean()
        curve = Curve(
            "",
            middles_of(by_epoch, time),
            mean.values,
            low=values.min().values,
            high=values.max().values,
        )
        panels.append(
            Panel(title=title, ylabel=ylabel, curves=(curve,), needs="", xlabel=time)
        )
    figure = draw_panels(panels, n_columns=2)
    figure.suptitle(
        f"gradients: {name_text(aimed.attrs['gradient'])}", fontsize="medium"
    )
    return figure


def polyak_lojasiewicz(
    bounds: xr.Dataset,
    *,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the smallest mu of every epoch for every order of the condition.

    A run with one epoch is divided into ranges of steps.

    Parameters
    ----------
    bounds : xarray.Dataset
        As returned by `analyzers.polyak_lojasiewicz`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : color, optional
        Colour of all lines. Default: from dark to light by order; line styles differ too.
    label : str, optional
        Text before the order in the legend, such as the name of the run.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    ax = new_axes(figsize=(5.2, 3.6)) if ax is None else ax
    by_epoch, time = by_time(bounds)
    least = by_epoch["mu"].groupby("epoch").min()
    orders = bounds["delta"].values
    prefix = "" if label is None else f"{drawable(label)}, "
    for i, (order, own) in enumerate(
        zip(orders, ordered_colors(len(orders)), strict=True)
    ):
        ax.semilogy(
            middles_of(by_epoch, time),
            least.sel(delta=order),
            color=own if color is None else color,
            linestyle=LINE_STYLES[i % len(LINE_STYLES)],
            label=rf"{prefix}$\delta$ = {order:g}",
        )
    ax.set(xlabel=time, ylabel=r"smallest $\mu_k(\delta)$")
    ax.set_title(f"gradients: {name_text(bounds.attrs['gradient'])}", fontsize="medium")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    # The curves of five orders may lie anywhere.
    draw_legend(ax, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax
