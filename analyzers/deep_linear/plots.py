"""Figures of `analyzers.linear_modes`."""

from typing import Final

import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzers._panels import ordered_colors

TIME: Final = "time $t$ of the gradient flow"
"""Label of the horizontal axis of every panel."""

YLIM_FACTOR: Final = 1.4
"""Upper limit of the modes, relative to the largest strength; leaves room for the legend."""


def mode_trajectories(modes: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw every singular mode and its closed form under gradient flow against time.

    Parameters
    ----------
    modes : xarray.Dataset
        As returned by `analyzers.linear_modes`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: axes of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on. Solid lines show the run, dashed lines the closed form.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    for i, color in enumerate(ordered_colors(modes.sizes["mode"])):
        mode = modes.isel(mode=i)
        label = rf"$\lambda$ = {float(mode['strength']):.3g}"
        ax.plot(modes["time"], mode["modes"], color=color, linewidth=2.2, label=label)
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
    ax.legend(fontsize="small", frameon=False, ncols=3, loc="upper center")
    return ax


def mode_errors(modes: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw every mode minus its closed form, relative to the largest strength.

    Parameters
    ----------
    modes : xarray.Dataset
        As returned by `analyzers.linear_modes`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: axes of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    for i, color in enumerate(ordered_colors(modes.sizes["mode"])):
        error = 100 * modes["error"].isel(mode=i) / modes["strength"].max()
        ax.plot(modes["time"], error, color=color, linewidth=1.4)
    ax.axhline(0, color="0.5", linewidth=0.8, zorder=0.5)
    ax.set(
        xlabel=TIME,
        ylabel="run less gradient flow, %",
        title="relative to the largest strength",
    )
    return ax


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
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 6.8), layout="constrained")
    mode_trajectories(modes, ax=axes[0, 0])
    mode_errors(modes, ax=axes[0, 1])
    balance = axes[1, 0]
    # The drift of the first step is 0, which a logarithmic axis cannot show.
    later = modes.isel(step=slice(1, None))
    for name, label in (
        ("imbalance", "largest entry"),
        ("drift", "largest change since the start"),
    ):
        balance.semilogy(later["time"], later[name].where(later[name] > 0), label=label)
    balance.set(xlabel=TIME, title=r"$W_{l+1}^T W_{l+1} - W_l W_l^T$")
    balance.legend(fontsize="small", frameon=False)
    rank = axes[1, 1]
    rank.plot(modes["time"], modes["effective_rank"])
    rank.set(xlabel=TIME, title="effective rank of the product", ylim=(0, None))
    return figure
