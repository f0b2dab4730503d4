"""Figures of several panels, each with the curves of several runs.

`Curve`, `Panel` and `draw_panels` are public members of `analyzers.plots`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.ticker import MaxNLocator

from analyzers._colors import COLORS
from analyzers._style import (
    Values,
    draw_legend,
    draw_series,
    draw_zero,
    new_figure,
    ordered_colors,
    set_log_scale,
)

PANEL_SIZE: Final = (4.2, 3.1)
"""Width and height of a panel in inches."""

MAX_BAND_EXCESS: Final = 1.0
"""Largest visible part of a band beyond the lines, relative to the range of the lines."""

MAX_HEIGHT: Final = 41.6
"""Largest height of a figure in inches; that of 200 layers."""

MAX_LAYER_NAMES: Final = 200
"""Largest number of rows of an image that are labelled."""

MAX_NAME: Final = 60
"""Longest name in a figure, in characters; the middle of a longer one is left out."""

MAX_TWO_COLUMN_LABEL: Final = 20
"""Longest label, in characters, that fits a legend with two columns."""


def name_text(name: object) -> str:
    """Return a name as text that matplotlib draws as it is, in one line."""
    # Names may come from an untrusted store. A dollar would begin a formula, and a legend
    # leaves out labels that begin with an underscore.
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))
    if len(text) > MAX_NAME:
        text = f"{text[: MAX_NAME // 2]}...{text[-MAX_NAME // 2 :]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def drawable(text: str) -> str:
    """Return text as it is if matplotlib can draw it, else with its dollars as characters."""
    text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    try:
        MathTextParser("path").parse(text)
    except (ValueError, RuntimeError):
        text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def layer_height(n_layers: int) -> float:
    """Return the height in inches of a figure with one row for each layer."""
    return min(1.6 + 0.2 * n_layers, MAX_HEIGHT)


def draw_layer_names(ax: Axes, names: Sequence[object] | Values) -> None:
    """Label the rows 0, 1, ... of an image with the names of layers, or with some of them."""
    every = -(-len(names) // MAX_LAYER_NAMES)
    rows = range(0, len(names), every)
    ax.set_yticks(rows, [name_text(names[i]) for i in rows], fontsize="small")


class Curve(NamedTuple):
    """One line of a panel: a quantity of one run.

    Attributes
    ----------
    label : str
        Text in the legend; the legend does not list curves without a text.
    x, y : numpy.ndarray
        Coordinates of the points on the line, shape ``(point,)``.
    stderr : numpy.ndarray or None
        Standard errors of y, drawn as error bars.
    low, high : numpy.ndarray or None
        Lower and upper edge of a band around the line.
    style : str
        Line style in the notation of matplotlib. Default: the next style of the panel; if
        colours are ordered, a solid line.
    width : float
        Line width in points.
    """

    label: str
    x: Values
    y: Values
    stderr: Values | None = None
    low: Values | None = None
    high: Values | None = None
    style: str = ""
    width: float = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Contents of one pair of axes.

    Attributes
    ----------
    title : str
        Text above the axes.
    ylabel : str
        Label of the vertical axis.
    curves : tuple of Curve
        Curves to draw. Without curves, the panel states which runs it needs.
    needs : str
        Description of the runs that the panel needs, such as "two batch sizes".
    is_ordered : bool
        Whether the curves have an order, such as increasing batch size. If so, their
        colours run from dark to light.
    is_robust : bool
        Whether the limits of the vertical axis ignore the lowest and the highest 2 percent
        of the values.
    is_log : bool
        Whether the vertical axis is logarithmic. It is linear around zero if a curve is not
        positive everywhere.
    xlabel : str
        Label of the horizontal axis.
    """

    title: str
    ylabel: str
    curves: tuple[Curve, ...]
    needs: str
    is_ordered: bool = False
    is_robust: bool = False
    is_log: bool = False
    xlabel: str = "epoch"


def draw_panels(
    panels: Sequence[Panel], *, n_columns: int, one_legend: bool = False
) -> Figure:
    """Draw panels in a grid, row by row.

    Parameters
    ----------
    panels : sequence of Panel
        Panels to draw, at least one.
    n_columns : int
        Largest number of panels in a row.
    one_legend : bool, default: False
        Whether all panels have the curves of the first one, whose legend then stands above them.

    Returns
    -------
    matplotlib.figure.Figure
        A new figure.
    """
    n_columns = min(n_columns, len(panels))
    n_rows = -(-len(panels) // n_columns)
    width, height = PANEL_SIZE
    size = (width * n_columns, height * n_rows)
    figure, axes = new_figure(n_rows, n_columns, figsize=size)
    for panel, ax in zip(panels, axes.flat, strict=False):
        _draw_panel(panel, ax=ax, has_legend=not one_legend)
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    if one_legend and labels:
        longest = max(map(len, labels))
        # A column takes about 0.09 inches for each character, and 0.6 for the line.
        n_fit = int(size[0] / (0.09 * longest + 0.6))
        figure.legend(
            *(handles, labels),
            loc="outside upper center",
            ncols=max(1, min(n_fit, len(labels))),
            fontsize="small",
            frameon=False,
        )
    return figure


def _draw_panel(panel: Panel, *, ax: Axes, has_legend: bool) -> Axes:
    """Draw the lines, error bars and bands of a panel, and return the axes."""
    ax.set_title(drawable(panel.title), fontsize="medium")
    if not panel.curves:
        ax.text(0.5, 0.5, f"needs {panel.needs}", wrap=True, ha="center", va="center")
        ax.set(xticks=[], yticks=[])
        return ax
    for curve, color in zip(panel.curves, _colors(panel), strict=True):
        draw_series(
            ax,
            *(curve.x, curve.y),
            stderr=curve.stderr,
            low=curve.low,
            high=curve.high,
            color=color,
            style=curve.style or ("-" if panel.is_ordered else None),
            has_markers=len(panel.curves) > 1 and not panel.is_ordered,
            width=curve.width,
            label=drawable(curve.label) or None,
        )
    ax.set(xlabel=drawable(panel.xlabel), ylabel=drawable(panel.ylabel))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    _set_limits(panel, ax, has_legend=has_legend)
    if has_legend:
        draw_legend(ax, ncols=_legend_columns(panel))
    return ax


def _legend_columns(panel: Panel) -> int:
    """Return the number of legend columns: two for more than three short labels, else one."""
    longest = max(len(curve.label) for curve in panel.curves)
    return 2 if len(panel.curves) > 3 and longest <= MAX_TWO_COLUMN_LABEL else 1


def _colors(panel: Panel) -> list[Any]:
    n = len(panel.curves)
    if panel.is_ordered:
        return ordered_colors(n)
    return [COLORS[i % len(COLORS)] for i in range(n)]


def _set_limits(panel: Panel, ax: Axes, *, has_legend: bool) -> None:
    """Set vertical limits that show zero, lines, legend, and bands up to `MAX_BAND_EXCESS`."""
    lines = _finite([curve.y for curve in panel.curves])
    ends = [end for c in panel.curves for end in (c.low, c.high) if end is not None]
    bands = _finite([*ends, lines])
    if not len(lines):
        return
    if panel.is_log:
        lows, highs = (
            _finite([end for end in ends if end is not None] or [lines])
            for ends in zip(*((c.low, c.high) for c in panel.curves), strict=True)
        )
        set_log_scale(ax, lines, lows, highs)
        return
    low, high = np.percentile(lines, (2, 98) if panel.is_robust else (0, 100))
    low, high = min(low, 0.0), max(high, 0.0)
    if not panel.is_robust:
        max_excess = MAX_BAND_EXCESS * (high - low)
        low = max(min(bands.min(), low), low - max_excess)
        high = min(max(bands.max(), high), high + max_excess)
    n_rows = -(-len(panel.curves) // _legend_columns(panel)) if panel.curves else 0
    has_legend = has_legend and any(curve.label for curve in panel.curves)
    room = (0.05 + 0.08 * n_rows) * has_legend
    size = (high - low) or 1.0
    ax.set_ylim(low - 0.04 * size * (low < 0), high + (0.04 + room) * size)
    if low < 0:
        draw_zero(ax)


def _finite(parts: Sequence[Values]) -> Values:
    values: Values = np.concatenate(parts)
    finite: Values = values[np.isfinite(values)]
    return finite
