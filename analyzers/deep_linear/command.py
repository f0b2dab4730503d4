"""Sub-command that follows the singular modes of a deep linear network."""

import os
from typing import Annotated, Final

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import tyro
import xarray as xr
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from analyzers._execution.results import results_location, store_result
from analyzers._reporting import figures_directory, say, say_how_to_open
from analyzers.deep_linear import plots
from analyzers.deep_linear.arrays import LossConvention
from analyzers.deep_linear.modes import linear_modes
from trajstore.reading.run import open_run

GROUP: Final = "linear-modes"


def linear(
    store: Positional[str],
    *,
    layers: tuple[str, ...] | None = None,
    loss: LossConvention | None = None,
    start: Annotated[int, tyro.conf.arg(metavar="STEP")] = 0,
) -> None:
    """Singular modes of a deep linear network, beside their closed form.

    Prints a table of the modes. Results go to RUN.analysis.zarr and a figure to
    RUN.figures, both beside the store; figures of a remote store go to the working
    directory.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store, recorded with --exact.
    layers : tuple of str, optional
        Names of the weights, in the order in which inputs pass them. Default: all.
    loss : str, optional
        What was descended: half-sum, sum or mean of squared errors over outputs; always a
        mean over examples. Default: what the store says, or else half-sum.
    start : int, default: 0
        Step whose modes the closed form begins with.
    """
    run = open_run(store)
    modes = linear_modes(run, layers=layers, loss=loss, start=start)
    modes = store_result(run, GROUP, modes)
    figures = figures_directory(run)
    mpl.use("agg")
    Console().print(_table(modes))
    last = modes.isel(step=-1)
    say(
        f"\n{modes.attrs['depth']} layers, {run.n_steps} steps, time "
        f"{float(last['time']):.3g} (loss: {modes.attrs['loss_convention']}).\n"
        f"At the end the effective rank is {float(last['effective_rank']):.2f}, and what "
        f"the flow\nconserves has changed by {float(last['drift']):.1g}."
    )
    plots.linear_overview(modes).savefig(figures / f"{GROUP}.png", dpi=150)
    plt.close("all")
    say(f"\nFigure: {figures}{os.sep}{GROUP}.png\nResults: {results_location(run)}")
    say_how_to_open(run, GROUP, "modes", 'abs(modes.error).max("step").values')


def _table(modes: xr.Dataset) -> Table:
    """Lay the modes out in at most 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    headers = (
        "mode",
        "strength",
        "first",
        "last",
        "flow",
        "half time",
        "flow",
        "error",
    )
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    largest = abs(modes["error"]).max("step")
    first, last = modes.isel(step=modes.attrs["start"]), modes.isel(step=-1)
    for i in range(modes.sizes["mode"]):
        half_times = (modes["half_time"][i], modes["half_time_closed_form"][i])
        table.add_row(
            str(i),
            f"{float(modes['strength'][i]):.4g}",
            f"{float(first['modes'][i]):.4f}",
            *(f"{float(last[name][i]):.4f}" for name in ("modes", "closed_form")),
            *(f"{float(t):.2f}" if np.isfinite(t) else "-" for t in half_times),
            f"{float(largest[i]):.4f}",
        )
    table.caption = "flow: by gradient flow; error: the largest distance from it"
    return table
