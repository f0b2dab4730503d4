"""Figures of the alpha-beta, the aiming and the Polyak-Lojasiewicz condition."""

from collections.abc import Sequence
from typing import Final

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyzers._panels import Curve, Panel, draw_panels, name_text, ordered_colors

EXCLUDED_COLOR: Final = "0.85"
"""Colour of the region alpha < beta + min_gap, whose pairs are not allowed."""

STDERR_COLOR: Final = "tab:orange"

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
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    pairs(margins, feasible, boundaries, ax=left)
    condition_of_steps(datasets, feasible, ax=right)
    return figure


def pairs(
    margins: xr.Dataset,
    feasible: xr.Dataset,
    boundaries: Sequence[xr.DataArray],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw the smallest T on a grid, and the boundary of the feasible pairs."""
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    alpha, beta = margins["alpha"].values, margins["beta"].values
    top = alpha - feasible.attrs["min_gap"]
    values = margins["margin"].values.T
    shown = values[beta[:, None] <= top]
    # Each sign has its own colour scale, since positive margins are mostly much nearer to 0
    # than negative margins.
    largest, smallest = max(shown.max(), 1e-12), min(shown.min(), -1e-12)
    norm = TwoSlopeNorm(0, smallest, largest)
    image = ax.pcolormesh(alpha, beta, values, norm=norm, cmap="RdBu", rasterized=True)
    ax.fill_between(alpha, top, beta[-1], color=EXCLUDED_COLOR, linewidth=0)
    ticks = [smallest, smallest / 2, 0, largest / 2, largest]
    bar = ax.figure.colorbar(image, ax=ax, label=r"$\min_k T_k$", ticks=ticks)
    bar.ax.set_yticklabels([f"{tick:.2g}" for tick in ticks])
    for boundary, width, color, label in zip(
        boundaries,
        (0.9, 1.6, 0.9),
        (STDERR_COLOR, "k", STDERR_COLOR),
        ("one standard error", "boundary", None),
        strict=True,
    ):
        lower = boundary.values.clip(min=0)
        ax.plot(boundary["alpha"], lower, color=color, linewidth=width, label=label)
    if np.isfinite(feasible["best_alpha"]):
        label = r"smallest $\alpha + \beta$"
        ax.plot(*_best(feasible), "k*", markersize=9, label=label, clip_on=False)
        ax.legend(fontsize="small", loc="upper left")
    else:
        ax.set_title("no pair holds", fontsize="medium")
    ax.set(xlabel=r"$\alpha$", ylabel=r"$\beta$")
    ax.set(xlim=(0, alpha[-1]), ylim=(0, beta[-1]))
    return ax


def _best(feasible: xr.Dataset) -> tuple[float, float]:
    return float(feasible["best_alpha"]), float(feasible["best_beta"])


def condition_of_steps(
    datasets: Sequence[xr.Dataset], feasible: xr.Dataset, *, ax: Axes | None = None
) -> Axes:
    """Draw T_k by step for the feasible pair with the smallest alpha + beta."""
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    alpha, beta = _best(feasible)
    if not np.isfinite(alpha):
        ax.text(0.5, 0.5, "no pair holds", ha="center", va="center")
        ax.set(xticks=[], yticks=[])
        return ax
    for i, dataset in enumerate(datasets):
        loss = dataset["loss"]
        margin = (
            dataset["product"]
            - alpha * (loss - dataset["reference_loss"])
            + beta * (loss - dataset.attrs["optimal_loss"])
        )
        ax.errorbar(
            dataset["step"],
            margin,
            dataset["product_stderr"],
            fmt=".",
            markersize=2,
            elinewidth=0.5,
            color=f"C{i % 10}",
        )
    ax.axhline(0, color="k", linewidth=0.8)
    ax.set_yscale("symlog", linthresh=0.01)
    ax.set(xlabel="step k", ylabel=rf"$T_k({alpha:.3g}, {beta:.3g})$")
    return ax


def aiming(aimed: xr.Dataset) -> Figure:
    """Draw the cosine and theta: the mean and the range of each within every epoch.

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
    for name, (title, ylabel) in AIMING_PANELS.items():
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
    figure.suptitle(
        f"gradients: {name_text(aimed.attrs['gradient'])}", fontsize="medium"
    )
    return figure


def polyak_lojasiewicz(bounds: xr.Dataset) -> Figure:
    """Draw the smallest mu of every epoch for every order of the condition.

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
        values, label = least.sel(delta=order), rf"$\delta$ = {order:g}"
        ax.semilogy(least["epoch"], values, color=color, label=label)
    ax.set(xlabel="epoch", ylabel=r"smallest $\mu_k(\delta)$")
    ax.set_title(f"gradients: {name_text(bounds.attrs['gradient'])}", fontsize="medium")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    ax.legend(fontsize="small", frameon=False)
    return figure
