"""Sub-command that finds the pairs for which the alpha-beta condition holds."""

from pathlib import Path
from typing import Final

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from analyzers._execution.results import results_location, store_result
from analyzers._reporting import figures_directory, say, say_how_to_open
from analyzers.conditions import alpha_beta_plots as plots
from analyzers.conditions.alpha_beta import MIN_GAP, feasible_set, margin, smallest_beta
from analyzers.conditions.alpha_beta import alpha_beta as compare
from analyzers.geometry.average_of_epochs import read_reference
from trajstore.reading.results import target_slug
from trajstore.reading.run import open_run
from trajstore.store.location import name_of

GRID: Final = 200
"""Points of the grid of the figure in each direction."""

MAX_ROWS: Final = 20
"""Corners that the table shows at most."""


def alpha_beta(
    stores: Positional[tuple[str, ...]],
    *,
    reference: str = "final",
    optimal_loss: float = 0.0,
    min_gap: float = MIN_GAP,
) -> None:
    """Pairs for which the alpha-beta condition holds at every step of one or more runs.

    Needs the losses at x*, from traj-train replay RUN. Prints the smallest pairs; results
    go to RUN.analysis.zarr and the figure to RUN.figures, beside the runs; what is of all of
    them together, beside the first.

    Parameters
    ----------
    stores : tuple of str
        Paths or URLs of trajectory stores, such as those of several seeds.
    reference : str, default: "final"
        The point x*: final, the name of a snapshot, the number of an epoch, or the path or
        URL of another store, for its final iterate.
    optimal_loss : float, default: 0.0
        Lower bound of the losses of all batches.
    min_gap : float, default: 0.1
        Least alpha - beta.
    """
    runs = [open_run(store) for store in stores]
    datasets = []
    slug = ""
    for run in runs:
        target = read_reference(reference, run)
        compared = compare(run, reference=target, optimal_loss=optimal_loss)
        slug = target_slug(compared.attrs["reference"])
        datasets.append(store_result(run, f"alpha-beta-{slug}", compared))
    stricter, pairs, looser = (
        feasible_set(datasets, min_gap=min_gap, n_stderr=n) for n in (-1, 0, 1)
    )
    store_result(runs[0], f"feasible-{slug}", pairs)
    alpha, beta = _grid(pairs, min_gap)
    margins = margin(datasets, alpha, beta)
    boundaries = [smallest_beta(s, alpha) for s in (stricter, pairs, looser)]

    _print(pairs, (stricter, looser))
    path = figures_directory(runs[0]) / f"alpha-beta-{slug}.png"
    mpl.use("agg")
    figure = plots.overview(datasets, margins, pairs, boundaries)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    say(f"\nFigure: {path}\nResults: {results_location(runs[0])}")
    say(f"Groups: alpha-beta-{slug} of every run, feasible-{slug}")
    say_how_to_open(runs[0], f"feasible-{slug}", "pairs", "pairs.alpha.values")


def _grid(
    pairs: xr.Dataset, min_gap: float
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], ...]:
    """Choose the part of the plane in which the smallest pairs lie."""
    least = float(pairs["best_alpha"])
    smallest = pairs["alpha"].values[pairs["is_smallest"].values]
    largest = 2 * max([least, *smallest], default=1.0) if np.isfinite(least) else 2.0
    alpha = np.linspace(0, max(largest, 5 * min_gap, 1.0), GRID + 1)[1:]
    return alpha, np.linspace(0, alpha[-1] - min_gap, GRID)


def _print(pairs: xr.Dataset, shifted: tuple[xr.Dataset, xr.Dataset]) -> None:
    console = Console(emoji=False, highlight=False)
    names = [name_of(run) for run in pairs.attrs["runs"]]
    n_steps = int(pairs["n_steps"])
    runs = "1 run" if len(names) == 1 else f"{len(names)} runs"
    if pairs.sizes["vertex"] == 0:
        say(f"At {n_steps:,} steps of {runs} {pairs.attrs['note']}.")
    else:
        say(
            f"The condition holds at all {n_steps:,} steps of {runs} from these pairs on:"
        )
        console.print(_table(pairs, names))
        say("Smallest alpha + beta:")
        table = Table(box=None, pad_edge=False, header_style="bold")
        for header in ("products", "alpha", "beta"):
            table.add_column(
                header, justify="left" if header == "products" else "right"
            )
        labels = (
            "one standard error smaller",
            "as estimated",
            "one standard error larger",
        )
        for label, of in zip(labels, (shifted[0], pairs, shifted[1]), strict=True):
            values = [f"{float(of[name]):.4g}" for name in ("best_alpha", "best_beta")]
            table.add_row(label, *values)
        console.print(table)
    if missing := int(pairs["n_missing"]):
        say(f"{missing:,} steps are left out: something of them is not known.")


def _table(pairs: xr.Dataset, names: list[str]) -> Table:
    """Lay out the corners of the boundary up to the last of the smallest pairs."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("alpha", "beta"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("beta is bounded by", overflow="ellipsis", no_wrap=True)
    chosen = np.flatnonzero(pairs["is_smallest"].values)
    every = -(-len(chosen) // MAX_ROWS)
    for i in chosen[::every]:
        step, run = int(pairs["step"][i]), int(pairs["run"][i])
        by = "0" if step < 0 else f"step {step} of {Path(names[run]).name}"
        values = [f"{float(pairs[name][i]):.4g}" for name in ("alpha", "beta")]
        table.add_row(*values, by)
    if every > 1:
        table.caption = f"One corner of {every} is shown."
    return table
