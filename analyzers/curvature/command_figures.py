"""Figures that the commands compose from the plots of this topic."""

from collections.abc import Mapping

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzers._panels import name_text
from analyzers._style import new_figure
from analyzers.curvature import plots


def smoothness_figure(found: Mapping[str, xr.Dataset], run: str) -> Axes:
    """Draw every result by its label on the same axes, under the name of the run."""
    ax = None
    for label, data in found.items():
        ax = plots.smoothness(data, title=name_text(run), ax=ax, label=label)
    assert ax is not None
    return ax


def convexity_figure(found: Mapping[str, xr.Dataset]) -> Figure:
    """Draw results side by side, by title."""
    figure, [axes] = new_figure(1, len(found), figsize=(4.2 * len(found), 3.1))
    for ax, (title, data) in zip(axes, found.items(), strict=True):
        plots.convexity(data, title=title, ax=ax)
    return figure
