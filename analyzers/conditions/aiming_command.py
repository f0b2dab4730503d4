"""Sub-commands that measure the aiming and the Polyak-Lojasiewicz condition."""

from urllib.parse import quote

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from analyzers._execution.results import results_location, store_result
from analyzers._reporting import figures_directory, say, say_how_to_open
from analyzers.conditions import aiming_plots as plots
from analyzers.conditions.aiming import aiming as aim
from analyzers.conditions.aiming import polyak_lojasiewicz
from analyzers.geometry.average_of_epochs import read_reference
from analyzers.geometry.command import MAX_ROWS
from analyzers.geometry.losses import replayed
from trajstore.reading.results import target_slug
from trajstore.reading.run import Run, open_run

NOT_OF_F = (
    "These are gradients and losses of minibatches; the condition is one of all data: "
    "record with traj-train run NAME --full-gradients, and ask for --measurement "
    "full_batch."
)


def aiming(
    store: Positional[str],
    *,
    reference: str = "final",
    measurement: str | None = None,
) -> None:
    """Angle between gradient and x - x*, and the constant theta of the aiming condition.

    Prints a table per epoch. Results go to RUN.analysis.zarr and the figure to
    RUN.figures, both beside the store.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    reference : str, default: "final"
        The point to measure against: final, the name of a snapshot, the number of an
        epoch, or the path or URL of another store, for its final iterate.
    measurement : str, optional
        Take gradients and losses of a measurement, such as full_batch.
    """
    mpl.use("agg")
    run = open_run(store)
    measured = aim(
        run, reference=read_reference(reference, run), measurement=measurement
    )
    slug = target_slug(measured.attrs["reference"])
    group = _group(f"aiming-{slug}", measurement)
    aimed = store_result(run, group, measured)
    Console().print(_table_of_aiming(aimed))
    _print_gradient(measurement)
    _finish(run, group, plots.aiming(aimed), "aimed", "aimed.theta.min().item()")


def pl(
    store: Positional[str],
    *,
    reference: str = "final",
    reference_loss: float | None = None,
    measurement: str | None = None,
) -> None:
    """Constants mu of the Polyak-Lojasiewicz condition that the steps of a run allow.

    Prints the smallest for every order. Results go to RUN.analysis.zarr and the figure to
    RUN.figures, both beside the store.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    reference : str, default: "final"
        The point x* whose loss traj-train replay computed.
    reference_loss : float, optional
        f(x*). Default: what traj-train replay computed for x*.
    measurement : str, optional
        Take gradients and losses of a measurement, such as full_batch.
    """
    mpl.use("agg")
    run = open_run(store)
    if reference_loss is None:
        target = read_reference(reference, run)
        found = replayed(run, target, otherwise="give --reference-loss")
        reference_loss = float(found["full_reference_loss"])
    bounds = polyak_lojasiewicz(
        run, reference_loss=reference_loss, measurement=measurement
    )
    group = _group("pl", measurement)
    stored = store_result(run, group, bounds)
    Console().print(_table_of_pl(stored))
    say(f"f* = {reference_loss:.6g}.")
    if missing := int(stored["n_missing"]):
        say(
            f"{missing:,} of {stored.sizes['step']:,} steps bound nothing: their loss is "
            "not above f*, or something of them is not known."
        )
    _print_gradient(measurement)
    figure = plots.polyak_lojasiewicz(stored)
    _finish(run, group, figure, "bounds", "bounds.smallest.values")


def _group(name: str, measurement: str | None) -> str:
    # Names of measurements are free, and may hold what a path cannot.
    return name if measurement is None else f"{name}-of-{quote(measurement, safe='')}"


def _finish(run: Run, group: str, figure: Figure, name: str, example: str) -> None:
    path = figures_directory(run) / f"{group}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    say(f"\nFigure: {path}\nResults: {results_location(run)}, group {group}")
    say_how_to_open(run, group, name, example)


def _print_gradient(measurement: str | None) -> None:
    if measurement is None:
        say(NOT_OF_F)


def _table_of_aiming(aimed: xr.Dataset) -> Table:
    """Lay the means out in at most 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("epoch", "loss", "angle", "cosine", "min", "theta", "min"):
        table.add_column(header, justify="right", no_wrap=True)
    dataset = aimed.drop_indexes(["epoch", "iteration"], errors="ignore")
    epochs = list(dataset.groupby("epoch"))
    every = -(-len(epochs) // MAX_ROWS)
    for epoch, of_epoch in epochs[::every]:
        n = int(of_epoch["theta"].notnull().sum())
        # Errors of theta are independent from step to step.
        stderr = float((of_epoch["theta_stderr"] ** 2).sum() ** 0.5) / max(n, 1)
        mean = of_epoch.mean()
        table.add_row(
            str(epoch),
            f"{float(mean['loss']):.4g}",
            f"{float(mean['angle']):.1f}°",
            f"{float(mean['cosine']):.4f}",
            f"{float(of_epoch['cosine'].min()):.3f}",
            f"{float(mean['theta']):.4g} ±{stderr:.1g}",
            f"{float(of_epoch['theta'].min()):.3g}",
        )
    if every > 1:
        table.caption = f"One epoch of {every} is shown."
    return table


def _table_of_pl(bounds: xr.Dataset) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("delta", "smallest mu", "at step"):
        table.add_column(header, justify="right", no_wrap=True)
    for i, delta in enumerate(bounds["delta"].values):
        mu, step = float(bounds["smallest"][i]), int(bounds["smallest_step"][i])
        value = f"{mu:.4g}" if np.isfinite(mu) else "none"
        table.add_row(f"{delta:g}", value, str(step) if step >= 0 else "")
    return table
