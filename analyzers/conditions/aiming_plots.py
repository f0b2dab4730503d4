"""Figures of `analyzers.aiming` and `analyzers.polyak_lojasiewicz`."""

from typing import Final

import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyzers._panels import Curve, Panel, draw_panels, ordered_colors

PANELS: Final = {
    "cosine": ("cosine of gradient and $x - x^*$", "cosine"),
    "theta": ("aiming", r"$\langle g_k, x_k - x^* \rangle / f(x_k)$"),
}
"""Title and axis label of each."""


def aiming(aimed: xr.Dataset) -> Figure:
    """Draw cosine and theta, the mean of every epoch and its smallest to largest step.

    Parameters
    ----------
    aimed : xarray.Dataset
        As returned by `analyzers.aiming`, loaded.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure.
    """
    by_epoch = aimed.drop_indexes(["epoch", "iteration"], errors="ignore")
    panels = []
    for name, (title, ylabel) in PANELS.items():
        values = by_epoch[name].groupby("epoch")
        mean = values.mean()
        curve = Curve(
            "",
            mean["epoch"].values,
            mean.values,
            low=values.min().values,
            high=values.max().values,
        )
        panels.append(Panel(title=title, ylabel=ylabel, curves=(curve,), needs=""))
    figure = draw_panels(panels, n_columns=2)
    figure.suptitle(f"gradients: {aimed.attrs['gradient']}", fontsize="medium")
    return figure


def polyak_lojasiewicz(bounds: xr.Dataset) -> Figure:
    """Draw the smallest mu of every epoch, for every order.

    Parameters
    ----------
    bounds : xarray.Dataset
        As returned by `analyzers.polyak_lojasiewicz`.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure.
    """
    by_epoch = bounds["mu"].drop_indexes(["epoch", "iteration"], errors="ignore")
    least = by_epoch.groupby("epoch").min()
    figure, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    orders = bounds["delta"].values
    for order, color in zip(orders, ordered_colors(len(orders)), strict=True):
        ax.semilogy(
            least["epoch"],
            least.sel(delta=order),
            color=color,
            label=rf"$\delta$ = {order:g}",
        )
    ax.set(xlabel="epoch", ylabel=r"smallest $\mu_k(\delta)$")
    ax.set_title(f"gradients: {bounds.attrs['gradient']}", fontsize="medium")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    ax.legend(fontsize="small", frameon=False)
    return figure
