"""Sub-command that compares recorded sharpness with what steps are stable at."""

from typing import Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from analyzers._execution.results import store_result
from analyzers._panels import draw_panels
from analyzers._reporting import figures_directory, say, say_how_to_open, spans
from analyzers.curvature.edge_of_stability import edge_of_stability
from analyzers.curvature.plots import edge
from trajstore.reading.run import open_run


def sharpness(
    store: Positional[str],
    *,
    optimizer: Literal["sgd", "nesterov", "adam"] | None = None,
    momentum: float | None = None,
) -> None:
    """Largest eigenvalue of the Hessian, over what steps are stable at.

    Takes runs with sharpness logged: traj-train run NAME --sharpness-every 10, or
    recorder.log(sharpness=...). Prints a table; results go to RUN.analysis.zarr, a figure
    to RUN.figures.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    optimizer : str, optional
        What trained: sgd, nesterov or adam. Default: as the run says.
    momentum : float, optional
        Its momentum; of Adam its first beta. Default: as the run says.
    """
    run = open_run(store)
    found = store_result(
        run,
        "sharpness",
        edge_of_stability(run, optimizer=optimizer, momentum=momentum),
    )
    mpl.use("agg")
    Console().print(_table(found))
    say(f"\n{_summary(found)}")
    path = figures_directory(run) / "sharpness.png"
    draw_panels([edge(found)], n_columns=1).savefig(path, dpi=150)
    plt.close("all")
    say(f"\nFigure: {path}")
    say_how_to_open(run, "sharpness", "edge", "edge.ratio.values")


def _table(found: xr.Dataset) -> Table:
    """Show the last evaluation of every span."""
    title = found.attrs["recorded_as"].replace("_", " ")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("step", "epoch", title, "threshold", "ratio"):
        table.add_column(header, justify="right", no_wrap=True)
    for span in spans(found.sizes["step"]):
        row = found.isel(step=span.stop - 1)
        table.add_row(
            str(row["step"].item()),
            str(row["epoch"].item()),
            *(f"{row[name].item():.4g}" for name in ("sharpness", "threshold")),
            f"{row['ratio'].item():.3f}",
        )
    return table


def _summary(found: xr.Dataset) -> str:
    reached = float(found["reached"])
    if not np.isfinite(reached):
        largest = float(found["ratio"].max())
        return f"The threshold is not reached: the largest ratio is {largest:.3f}."
    n = int((found["step"] >= reached).sum())
    low, middle, high = (
        float(found[f"ratio_{name}"]) for name in ("min", "median", "max")
    )
    return (
        f"The threshold is reached at step {reached:.0f}. Of the {n} evaluations from there "
        f"on, the ratio\nis {middle:.3f} in the median and {low:.3f} to {high:.3f}; "
        f"{100 * float(found['share_near']):.0f} % of them are within 10 % of 1."
    )
