"""Sub-command that measures how fast gradients change along the path."""

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
from analyzers.curvature.plots import smoothness as panel
from analyzers.curvature.smoothness import smoothness as measure
from trajstore.reading.run import open_run

SAME_BATCH = "same_batch"


def smoothness(
    store: Positional[str], *, measurement: str | None = None, layers: bool = False
) -> None:
    """Change of the gradient over that of the parameters, from step to step.

    Also that of the same examples before and after a step, if the run has it: traj-train
    run NAME --same-batch-every 10, or recorder.measure("same_batch"). Prints medians;
    results go to RUN.analysis.zarr, a figure to RUN.figures.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    measurement : str, optional
        Name of the measurement of the same examples. Default: same_batch, if it is there.
    layers : bool, default: False
        Also tell the parameter tensors apart.
    """
    run = open_run(store)
    name = measurement
    if name is None and SAME_BATCH in run.measurements:
        name = SAME_BATCH
    lazy = {"next step": ("smoothness", measure(run))}
    if name is not None:
        lazy["same batch"] = (f"smoothness-{name}", measure(run, measurement=name))
    found = {
        label: store_result(run, group, result)
        for label, (group, result) in lazy.items()
    }
    groups = [group for group, _ in lazy.values()]
    by_layer = None
    if layers:
        groups.append("smoothness-layers")
        by_layer = store_result(
            run, groups[-1], measure(run, measurement=name, layers=True)
        )
    console = Console()
    mpl.use("agg")
    console.print(_table(found, run.n_steps))
    is_full = run.attrs.get("training", {}).get("full_batch", False)
    if name is None and not is_full:
        say(
            "\nThese are gradients of different examples, unless the run has the full batch; "
            "for\nthose of the same examples train with --same-batch-every."
        )
    if by_layer is not None:
        console.print()
        console.print(_by_layer(by_layer))
    path = figures_directory(run) / "smoothness.png"
    drawn = draw_panels([panel(found, title=path.parent.stem)], n_columns=1)
    drawn.savefig(path, dpi=150)
    plt.close("all")
    say(f"\nFigure: {path}\nGroups: {', '.join(groups)}")
    say_how_to_open(run, groups[0], "along", "along.smoothness.median().values")


def _table(found: dict[str, xr.Dataset], n_steps: int) -> Table:
    """Show medians over spans of steps."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("steps", no_wrap=True)
    for label in found:
        for quantity in ("smoothness", "curvature"):
            table.add_column(f"{quantity},\n{label}", justify="right", no_wrap=True)
    for span in spans(n_steps):
        values = [
            _median(data[quantity], span)
            for data in found.values()
            for quantity in ("smoothness", "curvature")
        ]
        table.add_row(f"{span.start} to {span.stop - 1}", *values)
    return table


def _median(values: xr.DataArray, span: slice) -> str:
    step = values["step"]
    # The step is that of the later gradient.
    here = values.values[((step > span.start) & (step <= span.stop)).values]
    known = here[np.isfinite(here)]
    return f"{np.median(known):.4g}" if len(known) else "-"


def _by_layer(found: xr.Dataset) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", overflow="fold", max_width=50)
    table.add_column("median smoothness", justify="right", no_wrap=True)
    medians = found["smoothness"].median("step")
    for name, value in zip(found["layer"].values, medians.values, strict=True):
        table.add_row(str(name), f"{value:.4g}")
    return table
