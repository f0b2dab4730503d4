"""Sub-command that looks for what shows that the loss is not convex."""

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
from analyzers.curvature.convexity import adjacent_convexity
from analyzers.curvature.convexity import convexity as towards
from analyzers.curvature.plots import convexity as draw
from analyzers.geometry.average_of_epochs import read_reference
from analyzers.geometry.stored import result_group
from trajstore.reading.run import Run, open_run


def convexity(
    store: Positional[str],
    *,
    reference: str = "final",
    reference_loss: float | None = None,
    measurement: str | None = None,
) -> None:
    """By how much the loss at a reference point lies above the tangents at the iterates.

    Of runs with the full batch also neighbouring iterates are compared. Prints a table;
    results go to RUN.analysis.zarr, a figure to RUN.figures.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    reference : str, default: "final"
        The point, as traj-analyze geometry takes it.
    reference_loss : float, optional
        The loss of all data there. Default: what was recorded there.
    measurement : str, optional
        Take losses and gradients of a measurement, such as full_batch.
    """
    run = open_run(store)
    measured = run if measurement is None else run.measured(measurement)
    lazy = towards(
        measured,
        reference=read_reference(reference, run),
        reference_loss=reference_loss,
    )
    group = f"convexity-{result_group(lazy)}"
    found = store_result(run, group, lazy)
    near = None
    if _is_full(run):
        near = store_result(run, "convexity-adjacent", adjacent_convexity(run))
    mpl.use("agg")
    console, figures = Console(), figures_directory(run)
    label, loss = found.attrs["reference"], found.attrs["reference_loss"]
    say(f"Tangents at the iterates, towards {label} with the loss {loss:.6g}:\n")
    console.print(_table(found, ("slack",)))
    panels = [draw(found, title=f"tangents at the iterates, towards {label}")]
    groups = [group]
    if near is not None:
        groups.append("convexity-adjacent")
        say(f"\nTangents at neighbouring iterates ({near.attrs['rule']}):\n")
        console.print(_table(near, ("slack", "slack_back")))
        panels.append(draw(near, title="tangents at neighbouring iterates"))
    elif measurement is None:
        say(
            "\nLosses and gradients are those of minibatches: means tell of the whole loss, "
            "and single\nsteps do not. --measurement full_batch is exact, where it was "
            "recorded."
        )
    path = figures / f"{group}.png"
    draw_panels(panels, n_columns=2).savefig(path, dpi=150)
    plt.close("all")
    say(f"\nFigure: {path}\nGroups: {', '.join(groups)}")
    say_how_to_open(run, group, "slack", "slack.is_violated.mean().values")


def _is_full(run: Run) -> bool:
    return bool(run.attrs.get("training", {}).get("full_batch", False))


def _table(found: xr.Dataset, names: tuple[str, ...]) -> Table:
    """Show means over spans of rows, and how many of them lie below."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("steps", no_wrap=True)
    for name in names:
        title = name.removeprefix("slack_")
        table.add_column(f"{title}, mean", justify="right", no_wrap=True)
        table.add_column("least", justify="right", no_wrap=True)
        table.add_column("below 0", justify="right", no_wrap=True)
    step = found["step"].values
    for span in spans(len(step)):
        cells = []
        for name in names:
            values = found[name].values[span]
            below = found[f"is_violated{name.removeprefix('slack')}"].values[span]
            known = np.isfinite(values)
            if known.any():
                cells += [f"{values[known].mean():.3g}", f"{values[known].min():.3g}"]
                cells.append(f"{100 * below[known].mean():.0f} %")
            else:
                cells += ["-"] * 3
        table.add_row(f"{step[span.start]} to {step[span.stop - 1]}", *cells)
    return table
