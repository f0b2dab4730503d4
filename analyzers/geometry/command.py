"""Sub-command that measures RSI, EB and gamma of a run."""

import os
from functools import partial
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import xarray as xr
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from analyzers._execution.cluster import connected
from analyzers._reporting import figures_directory, say, say_how_to_open
from analyzers.geometry import plots
from analyzers.geometry.average_of_epochs import read_reference
from analyzers.geometry.epoch_means import epoch_means
from analyzers.geometry.stored import result_group, store_geometry
from trajstore.reading.ranges import as_ranges
from trajstore.reading.results import results_location
from trajstore.reading.run import open_run

MAX_ROWS = 40
"""Longest table; of more epochs every second, third, ... is shown."""


def geometry(
    store: Positional[str],
    *,
    reference: str = "final",
    layers: bool = False,
    measurement: str | None = None,
    weight_decay: float = 0.0,
    scheduler: str | None = None,
    workers: int | None = None,
    dashboard: bool = False,
    report: Path | None = None,
) -> None:
    """RSI, EB and gamma of every step, with error bars, relative to a reference point.

    Prints a table per epoch. Results go to RUN.analysis.zarr and figures to
    RUN.figures, both beside the store; figures of a remote store go to the working
    directory. What was computed before is not computed again.

    Parameters
    ----------
    store : str
        Path or URL of the trajectory store.
    reference : str, default: "final"
        The point to measure against: final, the name of a snapshot, the number of an
        epoch, mean:10:20 for the mean of the iterates at the starts of epochs 10 to 20, or
        the path or URL of another store, for its final iterate.
    layers : bool, default: False
        Also tell the parameter tensors apart.
    measurement : str, optional
        Take the gradients of a measurement instead of those of the steps; update for
        what the steps changed, if that was recorded.
    weight_decay : float, default: 0.0
        Add so many times the parameters to the gradients.
    scheduler : str, optional
        Address of a running Dask scheduler, such as tcp://host:8786, to compute there.
    workers : int, optional
        Compute in so many processes of this machine instead of threads.
    dashboard : bool, default: False
        Compute in processes of this machine, and print the link of Dask's dashboard.
    report : Path, optional
        Where to keep Dask's performance report, an HTML file.
    """
    console = Console()
    run = open_run(store)
    target = read_reference(reference, run)
    measured = run if measurement is None else run.measured(measurement)
    compute = partial(
        store_geometry, measured, reference=target, weight_decay=weight_decay
    )
    with connected(
        scheduler=scheduler, workers=workers, dashboard=dashboard, report=report
    ) as client:
        if client is not None:
            console.print(f"Dashboard: {client.dashboard_link}", soft_wrap=True)
        whole = compute()
        by_layer = compute(layers=True) if layers else None
    figures = figures_directory(run)
    mpl.use("agg")

    name = result_group(whole)
    means = epoch_means(whole).compute()
    if whole.attrs["direction"] != "gradient":
        console.print(f"In the place of the gradient: {whole.attrs['direction']}.")
    console.print(_table(means))
    _print_missing(console, means)
    _print_imprecise(console, means)
    if run.status != "complete":
        console.print(f"The run is {run.status}; these are its {run.n_steps} steps.")
    plots.overview(means).savefig(figures / f"{name}.png", dpi=150)
    if by_layer is not None:
        plots.layer_image(epoch_means(by_layer).compute())
        plt.savefig(figures / f"{name}-layers.png", dpi=150)
    plt.close("all")
    say(f"\nFigures: {figures}{os.sep}\nResults: {results_location(run)}")
    say(f"Groups: {name}" + (f", {name}-layers" if layers else ""))
    say_how_to_open(
        run, name, "geometry", 'geometry.gamma.groupby("epoch").mean().values'
    )


def _table(means: xr.Dataset) -> Table:
    """Lay the means out in at most 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("epoch", "gamma", "min", "max", "RSI", "EB", "loLR", "distance"):
        table.add_column(header, justify="right", no_wrap=True)
    every = -(-means.sizes["epoch"] // MAX_ROWS)
    for i in range(0, means.sizes["epoch"], every):
        row = {name: variable.item() for name, variable in means.isel(epoch=i).items()}
        table.add_row(
            str(means["epoch"].values[i]),
            f"{row['gamma']:.4f} ±{row['gamma_stderr']:.4f}",
            f"{row['gamma_min']:.3f}",
            f"{row['gamma_max']:.3f}",
            f"{row['rsi']:.3g}",
            f"{row['eb']:.3g}",
            f"{row['lolr']:.3g}",
            f"{row['distance']:.3g}",
        )
    if every > 1:
        table.caption = f"One epoch of {every} is shown."
    return table


def _print_imprecise(console: Console, means: xr.Dataset) -> None:
    """Say where nothing is known of gamma, a cosine."""
    epochs = means["epoch"].values[means["gamma_stderr"].values > 1].tolist()
    if epochs:
        console.print(
            f"Nothing is known of gamma in epochs {as_ranges(epochs)}: its standard error is "
            "above 1. In a last epoch that is so where the learning rate decays and the recorder was "
            "not given `total_steps`."
        )


def _print_missing(console: Console, means: xr.Dataset) -> None:
    missing = means["n_missing"]
    if total := int(missing.sum()):
        epochs = missing["epoch"].values[missing.values > 0].tolist()
        console.print(
            f"Steps without a value: {total}, in epochs {as_ranges(epochs)}. Gradient or "
            "parameters were not finite, a norm was 0, as at the reference point itself, or "
            "a chunk is damaged (traj-store verify tells). The means leave them out."
        )
