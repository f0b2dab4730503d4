"""Figures of `analyzers.alpha_beta`: which pairs hold along a path."""

from collections.abc import Sequence
from typing import Final

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

OUTSIDE: Final = "0.85"
"""Colour of pairs that are no pairs: alpha is too small beside beta."""

BLUR: Final = "tab:orange"


def pairs(
    margins: xr.Dataset,
    feasible: xr.Dataset,
    boundaries: Sequence[xr.DataArray],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw the smallest T over a grid, and the boundary of the pairs that hold.

    Parameters
    ----------
    margins : xarray.Dataset
        As returned by `analyzers.margin`.
    feasible : xarray.Dataset
        As returned by `analyzers.feasible_set`.
    boundaries : sequence of xarray.DataArray
        What `analyzers.smallest_beta` returns for products one standard error smaller, as
        they are, and one standard error larger.
    ax : matplotlib.axes.Axes, optional
        Where to draw. Default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.
    """
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    alpha, beta = margins["alpha"].values, margins["beta"].values
    top = alpha - feasible.attrs["min_gap"]
    values = margins["margin"].values.T
    shown = values[beta[:, None] <= top]
    # What holds is mostly far nearer to 0 than what does not: each has a scale of its own.
    largest, smallest = max(shown.max(), 1e-12), min(shown.min(), -1e-12)
    norm = TwoSlopeNorm(0, smallest, largest)
    image = ax.pcolormesh(alpha, beta, values, norm=norm, cmap="RdBu", rasterized=True)
    ax.fill_between(alpha, top, beta[-1], color=OUTSIDE, linewidth=0)
    ticks = [smallest, smallest / 2, 0, largest / 2, largest]
    bar = ax.figure.colorbar(image, ax=ax, label=r"$\min_k T_k$", ticks=ticks)
    bar.ax.set_yticklabels([f"{tick:.2g}" for tick in ticks])
    for boundary, width, color, label in zip(
        boundaries,
        (0.9, 1.6, 0.9),
        (BLUR, "k", BLUR),
        ("one standard error", "boundary", None),
        strict=True,
    ):
        ax.plot(
            boundary["alpha"],
            boundary.values.clip(min=0),
            color=color,
            linewidth=width,
            label=label,
        )
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
    """Draw T of every step, for the smallest pair that holds.

    Parameters
    ----------
    datasets : sequence of xarray.Dataset
        As returned by `analyzers.alpha_beta`, loaded.
    feasible : xarray.Dataset
        As returned by `analyzers.feasible_set` for them.
    ax : matplotlib.axes.Axes, optional
        Where to draw. Default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.
    """
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


def overview(
    datasets: Sequence[xr.Dataset],
    margins: xr.Dataset,
    feasible: xr.Dataset,
    boundaries: Sequence[xr.DataArray],
) -> Figure:
    """Draw the pairs, and T of every step for the smallest of them.

    Parameters
    ----------
    datasets : sequence of xarray.Dataset
        As returned by `analyzers.alpha_beta`, loaded.
    margins, feasible, boundaries
        As `pairs` takes them.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    pairs(margins, feasible, boundaries, ax=left)
    condition_of_steps(datasets, feasible, ax=right)
    return figure
