"""Figures of `analyzers.linear_modes`."""

from typing import Any, Final

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzers._panels import drawable
from analyzers._style import (
    LINE_STYLES,
    draw_legend,
    draw_zero,
    new_axes,
    new_figure,
    ordered_colors,
)

TIME: Final = "time $t$ of the gradient flow"
"""Label of the horizontal axis of every panel."""

YLIM_FACTOR: Final = 1.4
"""Upper limit of the modes, relative to the largest strength; leaves room for the legend."""


def mode_trajectories(
    modes: xr.Dataset,
    *,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw every singular mode and its closed form under gradient flow against time.

    Parameters
    ----------
    modes : xarray.Dataset
        As returned by `analyzers.linear_modes`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : color, optional
        Colour of all modes. Default: from dark to light.
    label : str, optional
        Text before the strength of each mode in the legend, such as the name of the run.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on. Solid lines show the run, dashed lines the closed form.
    """
    ax = new_axes(figsize=(5.5, 3.8)) if ax is None else ax
    for i, own in enumerate(ordered_colors(modes.sizes["mode"])):
        mode = modes.isel(mode=i)
        ax.plot(
            modes["time"],
            mode["modes"],
            color=own if color is None else color,
            linewidth=2.2,
            label=_mode_label(mode, label),
        )
    for i in range(modes.sizes["mode"]):
        flow_label = "gradient flow" if i == 0 else None
        flow = modes["closed_form"].isel(mode=i)
        ax.plot(
            modes["time"], flow, "--", color="black", linewidth=0.9, label=flow_label
        )
    ax.set(
        xlabel=TIME,
        ylabel=r"$u_\mu^T W_L \cdots W_1 v_\mu$",
        title=f"singular modes, {modes.attrs['depth']} layers",
    )
    ax.set_ylim(top=YLIM_FACTOR * float(modes["strength"].max()))
    draw_legend(ax, ncols=3, loc="upper center")
    return ax


def mode_errors(
    modes: xr.Dataset,
    *,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw every mode minus its closed form, relative to the largest strength.

    Parameters
    ----------
    modes : xarray.Dataset
        As returned by `analyzers.linear_modes`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : color, optional
        Colour of all modes. Default: from dark to light.
    label : str, optional
        Text before the strength of each mode in the legend, such as the name of the run.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.
    """
    ax = new_axes(figsize=(5.5, 3.8)) if ax is None else ax
    for i, own in enumerate(ordered_colors(modes.sizes["mode"])):
        error = 100 * modes["error"].isel(mode=i) / modes["strength"].max()
        ax.plot(
            modes["time"],
            error,
            color=own if color is None else color,
            linestyle=LINE_STYLES[i % len(LINE_STYLES)],
            linewidth=1.4,
            label=None if label is None else _mode_label(modes.isel(mode=i), label),
        )
    draw_zero(ax)
    ax.set(
        xlabel=TIME,
        ylabel="run less gradient flow, %",
        title="relative to the largest strength",
    )
    draw_legend(ax)
    return ax


def _mode_label(mode: xr.Dataset, label: str | None) -> str:
    """Return the strength of a mode, after the label if there is one."""
    prefix = "" if label is None else f"{drawable(label)}, "
    return rf"{prefix}$\lambda$ = {float(mode['strength']):.3g}"


def linear_modes(modes: xr.Dataset) -> Figure:
    """Draw the modes, their errors, the conserved matrices, and the effective rank.

    Parameters
    ----------
    modes : xarray.Dataset
        As returned by `analyzers.linear_modes`.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure.
    """
    figure, axes = new_figure(2, 2, figsize=(9.5, 6.8))
    mode_trajectories(modes, ax=axes[0, 0])
    mode_errors(modes, ax=axes[0, 1])
    balance = axes[1, 0]
    # The drift of the first step is 0, which a logarithmic axis cannot show.
    later = modes.isel(step=slice(1, None))
    for name, style, text in (
        ("imbalance", "-", "largest entry"),
        ("drift", "--", "largest change since the start"),
    ):
        values = later[name].where(later[name] > 0)
        balance.semilogy(later["time"], values, style, label=text)
    balance.set(xlabel=TIME, title=r"$W_{l+1}^T W_{l+1} - W_l W_l^T$")
    draw_legend(balance)
    rank = axes[1, 1]
    rank.plot(modes["time"], modes["effective_rank"])
    rank.set(xlabel=TIME, title="effective rank of the product", ylim=(0, None))
    return figure
