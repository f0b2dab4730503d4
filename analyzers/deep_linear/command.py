"""Command for the singular modes of a deep linear network."""

from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
import tyro
from rich.table import Table
from tyro.conf import Positional

import analyzers
import trajstore
from analyzers import _execution
from analyzers._reporting import TERMINAL, Output, make_table, report
from analyzers.deep_linear.conventions import LossConvention

if TYPE_CHECKING:
    import xarray as xr


GROUP: Final = "linear-modes"


def linear_modes(
    store: Positional[str],
    *,
    layers: tuple[str, ...] | None = None,
    loss: LossConvention | None = None,
    start: Annotated[int, tyro.conf.arg(metavar="STEP")] = 0,
    output: Output = TERMINAL,
) -> None:
    """Singular modes of a deep linear network, compared with their closed form.

    Prints a table of the modes. Writes results to RUN.analysis.zarr and a figure to
    RUN.figures, both next to the store; the figure of a remote store goes to the working
    directory.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store of a run recorded with --exact.
    layers : tuple of str, optional
        Names of the weight matrices, from inputs to outputs. Default: all parameters.
    loss : str, optional
        Training loss: half-sum, sum or mean of squared errors over outputs; always a mean
        over examples. Default: loss_convention in the attrs of the store, or half-sum
        if it is not there.
    start : int, default: 0
        Step whose modes are the initial values of the closed form.
    output : Output
        Where results, tables and figures go.
    """
    run = trajstore.open_run(store)
    lazy = analyzers.linear_modes(run, layers=layers, loss=loss, start=start)
    modes = _execution.store_result(run, GROUP, lazy)
    report(
        run,
        _modes(modes),
        _summary(modes),
        data=modes,
        figures={GROUP: lambda: analyzers.plots.linear_modes(modes)},
        output=output,
        groups=[GROUP],
        name="modes",
        example='abs(modes.error).max("step").values',
    )


def _modes(modes: "xr.Dataset") -> Table:
    """Return a table of the modes, at most 80 columns wide."""
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
    table = make_table(*headers)
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
    table.caption = "flow: under gradient flow; error: largest deviation from the flow"
    return table


def _summary(modes: "xr.Dataset") -> str:
    last = modes.isel(step=-1)
    return (
        f"{modes.attrs['depth']} layers, {modes.sizes['step']} steps, time "
        f"{float(last['time']):.3g} (loss: {modes.attrs['loss_convention']}). At the end "
        f"the effective rank is {float(last['effective_rank']):.2f}, and the matrices that "
        f"gradient flow conserves have changed by {float(last['drift']):.1g}."
    )
