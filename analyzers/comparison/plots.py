"""Draw runs side by side, their paths and their distances."""

from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from analyzers._colors import COLORS, UNSIGNED
from analyzers._panels import Curve, Panel, draw_panels, drawable, name_text
from analyzers._style import (
    LINE_STYLES,
    MARKERS,
    draw_legend,
    new_axes,
    ordered_colors,
)

MAX_HALVED: Final = 4
"""Largest number of runs whose middles are labelled in an image of distances."""

PANELS: Final = {
    "gamma": (r"$\gamma$", "cosine of gradient and $x - x^*$", False),
    "gamma_difference": (
        r"$\gamma - \gamma_1$",
        "$\\gamma$ minus the first run",
        False,
    ),
    "distance": ("$|x_k - x^*|$", "distance to $x^*$", True),
    "loss": ("loss", "loss", True),
    "rsi": ("RSI", "restricted secant inequality", True),
    "eb": ("EB", "error bound", True),
    "lolr": ("loLR", "locally optimal learning rate", False),
    "lr": ("lr", "learning rate", False),
}
"""Label, title and whether the axis is logarithmic, by variable."""


def compare(compared: xr.Dataset) -> Figure:
    """Draw the quantities of several runs against the epoch, with a panel for each quantity.

    Error bars show one standard error: of the mean over an epoch, or of the mean over runs. The
    last epoch of each run is left out of panels whose quantities blow up near x*.

    Parameters
    ----------
    compared : xarray.Dataset
        As returned by `analyzers.compare` or `analyzers.compare_over_seeds`.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure.
    """
    dim = "run" if "run" in compared.dims else "configuration"
    is_alone = compared.sizes[dim] == 1
    panels = [
        Panel(
            title=title,
            ylabel=label,
            curves=tuple(
                _curve(compared, dim, i, name, has_label=not is_alone)
                for i in range(compared.sizes[dim])
            ),
            needs="a run",
            is_log=is_log,
            xlabel=compared.attrs.get("time", "epoch"),
        )
        for name, (label, title, is_log) in PANELS.items()
        if name in compared
        and "epoch" in compared[name].dims
        and compared[name].notnull().any()
    ]
    figure = draw_panels(panels, n_columns=4, one_legend=True)
    if is_alone:
        figure.suptitle(name_text(compared[dim].item()))
    for ax in figure.axes[len(panels) : len(panels) + 1]:
        # The place that the panels leave free says what they show.
        of = "over an epoch" if dim == "run" else "over the runs of a configuration"
        text = f"error bars: one standard error\nof the mean {of}"
        ax.text(0.5, 0.5, text, ha="center", va="center", fontsize="medium")
    return figure


def _curve(
    compared: xr.Dataset, dim: str, i: int, name: str, *, has_label: bool
) -> Curve:
    """Return the curve of a variable of run or configuration number `i`."""
    is_held = compared["n_steps" if dim == "run" else "n_runs"].values > 0
    kept = np.flatnonzero(is_held[i])
    # The last epoch ends at x*, so its quantities blow up.
    if name not in {"loss", "lr", "distance"} and len(kept) > 1:
        kept = kept[:-1]
        if name.endswith("_difference"):
            kept = np.intersect1d(kept, np.flatnonzero(is_held[0])[:-1])
    chosen = compared.isel({dim: i, "epoch": kept})
    stderr = chosen.get(f"{name}_stderr")
    return Curve(
        name_text(chosen[dim].item()) if has_label else "",
        _places(compared)[kept],
        chosen[name].values,
        None if stderr is None else stderr.values,
    )


def _places(compared: xr.Dataset) -> Any:
    """Return the places of epochs, or of the middles of ranges of steps, on an axis, (epoch,)."""
    first = compared["epoch"].values
    if compared.attrs.get("time") != "step" or len(first) < 2:
        return first
    lengths = np.diff(first, append=first[-1] + first[1] - first[0])
    if "n_steps" in compared:
        # The last range may be shorter.
        lengths[-1] = min(lengths[-1], compared["n_steps"].values[:, -1].max())
    return first + (lengths - 1) / 2


def path_pca(
    path: xr.Dataset,
    *,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the paths of runs in the plane of their first two principal components.

    A line joins the iterates of a run in the order of their steps. A circle marks its first
    iterate, a star its final one, and a diamond a snapshot.

    Parameters
    ----------
    path : xarray.Dataset
        As returned by `analyzers.path_pca`, with at least two components.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : color, optional
        Colour of all lines. Default: a colour for each run.
    label : str, optional
        Text of the first run in the legend. Default: the names of the runs, if there are
        several.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.

    Raises
    ------
    ValueError
        If `path` has only one component.
    """
    if path.sizes["component"] < 2:
        raise ValueError(
            "A map needs two components, and the dataset has one; compute it with "
            "path_pca(runs, components=2)."
        )
    ax = new_axes(figsize=(6.0, 5.0)) if ax is None else ax
    names = list(dict.fromkeys(path["run"].values.tolist()))
    for i, name in enumerate(names):
        own = path.isel(point=path["run"].values == name)
        x, y = own["coordinate"].values[:, :2].T
        chosen = color if color is not None else COLORS[i % len(COLORS)]
        shown = name_text(name) if len(names) > 1 else None
        if i == 0 and label is not None:
            shown = drawable(label)
        ax.plot(
            *(x, y),
            color=chosen,
            linestyle=LINE_STYLES[i % len(LINE_STYLES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=3.0,
            linewidth=1.0,
            label=shown,
        )
        ax.plot(x[:1], y[:1], "o", color=chosen, markersize=7, fillstyle="none")
        for kind, marker in {"final": "*", "snapshot": "d"}.items():
            marked = own["kind"].values == kind
            ax.plot(x[marked], y[marked], marker, color=chosen, markersize=9)
    shares = path["explained_variance_ratio"].values
    ax.set(
        xlabel=f"first component, {shares[0]:.0%} of the variance",
        ylabel=f"second component, {shares[1]:.0%}",
        title="stored iterates in principal directions",
    )
    ax.set_aspect("equal", adjustable="datalim")
    draw_legend(ax)
    return ax


def path_distances(
    apart: xr.Dataset,
    *,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the distances of all pairs of iterates as an image.

    Parameters
    ----------
    apart : xarray.Dataset
        As returned by `analyzers.path_distances`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : str or matplotlib.colors.Colormap, optional
        Colour map. Default: viridis.
    label : str, optional
        Label of the colour bar. Default: "distance".

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    ax = new_axes(figsize=(6.0, 5.0)) if ax is None else ax
    image = ax.imshow(apart["distance"].values, cmap=color or UNSIGNED, vmin=0)
    text = "distance" if label is None else drawable(label)
    ax.figure.colorbar(image, ax=ax, label=text)
    names = apart["run"].values.tolist()
    starts = [i for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
    steps = apart["step"].values
    if len(starts) > 1:
        for start in starts[1:]:
            ax.axhline(start - 0.5, color="white", linewidth=0.8)
            ax.axvline(start - 0.5, color="white", linewidth=0.8)
        ax.set_yticks(starts, [name_text(names[i]) for i in starts], fontsize="small")
        # The same places in every run: its first iterate and the one in its middle.
        ends = [*starts[1:], len(names)]
        halves = [(a + b - 1) // 2 for a, b in zip(starts, ends, strict=True)]
        few = len(starts) <= MAX_HALVED
        ticks = sorted({*starts, *halves, len(names) - 1}) if few else starts
        ax.set_xticks(ticks, [str(steps[i]) for i in ticks], fontsize="small")
    else:
        every = range(0, len(names), max(1, len(names) // 6))
        ax.set_yticks(every, [str(steps[i]) for i in every])
        ax.set_xticks(every, [str(apart["other_step"].values[i]) for i in every])
    ax.set(
        xlabel="step" if len(starts) == 1 else "step of each run",
        ylabel="step" if len(starts) == 1 else "",
        title="distances of iterates",
    )
    return ax


def losses_on_plane(
    losses: xr.Dataset,
    path: xr.Dataset | None = None,
    *,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the loss on a plane, with the path of a run above it.

    The title states how much of the path the plane shows, and the largest difference between
    the loss of an iterate and the loss of its projection onto the plane.

    Parameters
    ----------
    losses : xarray.Dataset
        As returned by `trajstore.evaluation.losses_on_plane`.
    path : xarray.Dataset, optional
        As returned by `analyzers.path_pca` for the same runs. Default: only the iterates at
        which the loss was evaluated.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : str or matplotlib.colors.Colormap, optional
        Colour map. Default: viridis.
    label : str, optional
        Label of the colour bar. Default: "loss".

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    ax = new_axes(figsize=(6.4, 5.0)) if ax is None else ax
    values = losses["loss"].transpose("second", "first").values
    known = values[np.isfinite(values)]
    is_log = len(known) > 0 and known.min() > 0 and known.max() > 10 * known.min()
    norm = LogNorm() if is_log else None
    grid = (losses["first"].values, losses["second"].values, values)
    options: dict[str, Any] = {"cmap": color or UNSIGNED, "norm": norm}
    levels = _levels(known, is_log=is_log)
    filled = ax.contourf(*grid, levels=levels, extend="both", **options)
    text = "loss" if label is None else drawable(label)
    bar = ax.figure.colorbar(filled, ax=ax, label=text)
    bar.ax.yaxis.set_major_formatter("{x:.3g}")
    bar.ax.minorticks_off()
    if path is None:
        x, y = losses["point_first"].values, losses["point_second"].values
        ax.plot(x, y, "o-", color="white", markersize=3, linewidth=1.0)
    else:
        path_pca(path, ax=ax, color="white")
        ax.set_aspect("auto")
    ax.set(xlim=grid[0][[0, -1]], ylim=grid[1][[0, -1]])
    shares = losses["explained_variance_ratio"].values
    error = losses.attrs["projection_error"]
    ax.set(
        xlabel=f"first component, {shares[0]:.0%} of the variance",
        ylabel=f"second component, {shares[1]:.0%}",
    )
    ax.set_title(
        f"loss on the plane, which shows {shares.sum():.1%} of the variance;\n"
        f"losses of iterates and projections differ by up to {error:.2g}",
        fontsize="medium",
    )
    return ax


def _levels(known: Any, *, is_log: bool) -> Any:
    """Return 20 levels from the smallest value to the largest."""
    if not len(known) or known.min() == known.max():
        return 20
    space = np.geomspace if is_log else np.linspace
    return space(known.min(), known.max(), 20)


def losses_towards(
    losses: xr.Dataset,
    *,
    ax: Axes | None = None,
    color: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the loss on the lines from iterates to a target.

    Parameters
    ----------
    losses : xarray.Dataset
        As returned by `trajstore.evaluation.losses_towards`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on. Default: the axes of a new figure.
    color : color, optional
        Colour of all lines. Default: from dark to light by epoch; line styles differ too.
    label : str, optional
        Text before the epoch in the legend, such as the name of the run.

    Returns
    -------
    matplotlib.axes.Axes
        The axes with the drawing.
    """
    ax = new_axes() if ax is None else ax
    prefix = "" if label is None else f"{drawable(label)}, "
    epochs = losses["epoch"].values
    for i, (epoch, own) in enumerate(
        zip(epochs, ordered_colors(len(epochs)), strict=True)
    ):
        ax.plot(
            losses["fraction"],
            losses["loss"].isel(epoch=i),
            color=own if color is None else color,
            linestyle=LINE_STYLES[i % len(LINE_STYLES)],
            label=f"{prefix}epoch {epoch:.0f}",
        )
    if bool((losses["loss"] > 0).all()):
        ax.set_yscale("log")
    ax.set(
        xlabel="position on the line: 0 is the iterate, 1 is $x^*$",
        ylabel="loss",
        title="loss from iterates to $x^*$",
    )
    draw_legend(ax)
    return ax
