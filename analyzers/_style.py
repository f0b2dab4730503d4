"""Line styles, scales and new figures: one style for every figure.

Red marks what is negative (products, cosines, slacks; zigzag) and blue what is positive, in
every image and bar. The lines of runs differ in colour, line style and marker, and no run
is red.
"""

from typing import Any, Final

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from analyzers._colors import COLORS, UNSIGNED

Values = npt.NDArray[Any]

LINE_STYLES: Final = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
"""Line styles and markers of runs. The numbers of colours, styles and markers share no
factor but 1, so 280 runs look different."""

MAX_MARKED: Final = 40
N_MARKERS: Final = 12
"""A line of at most `MAX_MARKED` points has a marker at each, a longer line about
`N_MARKERS` markers."""

BAND_OPACITY: Final = 0.15

MAX_DECADES_BELOW: Final = 1.0
"""Largest visible part of a band below the lines of a logarithmic axis, in decades."""


class ShownOnce(Figure):
    """A figure that a notebook shows once, even if it is the value of a cell."""

    def _ipython_display_(self) -> None:
        # The inline backend shows every open figure when the cell ends, so a figure that is
        # the value of a cell is closed first. IPython's formatters, which follow this error,
        # show it then, in both cases.
        if "inline" in mpl.get_backend() and _is_open(self):
            plt.close(self)
        raise NotImplementedError("The formatters of IPython show the figure.")


def _is_open(figure: Figure) -> bool:
    """Return whether pyplot manages the figure."""
    current = plt.gcf() if plt.get_fignums() else None
    found = any(plt.figure(number) is figure for number in plt.get_fignums())
    if current is not None:
        plt.figure(current)
    return found


def new_figure(
    n_rows: int = 1,
    n_columns: int = 1,
    *,
    figsize: tuple[float, float] | None = None,
) -> tuple[Figure, Values]:
    """Return a figure and its axes, ``(n_rows, n_columns)``, with the colours of runs."""
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=figsize,
        layout="constrained",
        squeeze=False,
        FigureClass=ShownOnce,
    )
    # Not rcParams: a backend is loaded with the first figure, and changes them for good.
    for ax in axes.flat:
        ax.set_prop_cycle(color=COLORS)
    return figure, axes


def new_axes(*, figsize: tuple[float, float] | None = None) -> Axes:
    """Return the axes of a new figure."""
    ax: Axes = new_figure(figsize=figsize)[1][0, 0]
    return ax


def n_series(ax: Axes) -> int:
    """Return the number of lines that `draw_series` has drawn on the axes."""
    return sum(isinstance(container, ErrorbarContainer) for container in ax.containers)


def draw_series(
    ax: Axes,
    x: Values,
    y: Values,
    *,
    stderr: Values | None = None,
    low: Values | None = None,
    high: Values | None = None,
    color: Any = None,
    style: Any = None,
    has_markers: bool = True,
    width: float = 1.2,
    label: str | None = None,
    band_label: str | None = None,
) -> Any:
    """Draw a line with error bars and a band, all of shape ``(point,)``; return its colour."""
    # By default, the line has the next colour of the axes, and the line style and the marker
    # that follow those of the lines drawn before.
    i = n_series(ax)
    drawn = ax.errorbar(
        x,
        y,
        yerr=stderr,
        color=color,
        linestyle=LINE_STYLES[i % len(LINE_STYLES)] if style is None else style,
        marker=MARKERS[i % len(MARKERS)] if has_markers else "",
        markersize=3.5,
        markevery=1 if len(x) <= MAX_MARKED else len(x) // N_MARKERS,
        linewidth=width,
        elinewidth=0.9,
        label=label,
    )
    color = drawn.lines[0].get_color()
    if low is not None and high is not None:
        ax.fill_between(
            x, low, high, color=color, alpha=BAND_OPACITY, lw=0, label=band_label
        )
    return color


def draw_zero(ax: Axes) -> None:
    """Mark zero on the vertical axis."""
    ax.axhline(0, color="0.5", linewidth=0.8, zorder=0.5)


def draw_legend(ax: Axes, **options: Any) -> None:
    """Draw a legend if anything has a label."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(**{"fontsize": "small", "frameon": False} | options)


def ordered_colors(n: int) -> list[Any]:
    """Return n colours from dark to light."""
    return list(mpl.colormaps[UNSIGNED](np.linspace(0, 0.85, n)))


def set_limits(ax: Axes, low: float, high: float) -> None:
    """Set the limits of the vertical axis; limits of lines drawn before stay visible."""
    if n_series(ax) > 1:
        before = ax.get_ylim()
        low, high = min(low, before[0]), max(high, before[1])
    # The axis of the caller may be logarithmic.
    ax.set_ylim(None if low <= 0 and ax.get_yscale() == "log" else low, high)


FEW_DECADES: Final = 100.0
"""Ratio of the ends of a logarithmic axis below which numbers between powers of ten are labelled."""


def set_log_scale(ax: Axes, lines: Values, low: Values, high: Values) -> None:
    """Make the vertical axis logarithmic, with limits that show lines and bands.

    The axis is linear around zero if a line is not positive everywhere, and stays linear
    if no line has a positive value. Bands are cut `MAX_DECADES_BELOW` the lines.
    """
    lines, low, high = (values[np.isfinite(values)] for values in (lines, low, high))
    if not (lines > 0).any():
        return
    is_mixed = n_series(ax) > 1 and ax.get_yscale() == "symlog"
    bottom, top = min(lines.min(), low.min(initial=np.inf)), max(lines.max(), *high)
    if (lines > 0).all() and not is_mixed:
        ax.set_yscale("log")
        bottom = max(bottom, lines.min() / 10**MAX_DECADES_BELOW) / 1.2
    else:
        smallest = np.quantile(abs(lines[lines != 0]), 0.1)
        threshold = 10.0 ** np.floor(np.log10(smallest))
        ax.set_yscale("symlog", linthresh=float(threshold))
        draw_zero(ax)
        bottom = min(1.2 * bottom, 0.0)
    set_limits(ax, float(bottom), float(1.2 * top))
    if ax.get_yscale() == "log":
        _set_log_ticks(ax)


def _set_log_ticks(ax: Axes) -> None:
    """Label few numbers of a logarithmic axis that spans less than two decades."""
    bottom, top = ax.get_ylim()
    if top / bottom < FEW_DECADES:
        is_short = top / bottom < 5
        ax.yaxis.set_major_locator(
            MaxNLocator(nbins=5) if is_short else LogLocator(subs=(1.0, 2.0, 5.0))
        )
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
