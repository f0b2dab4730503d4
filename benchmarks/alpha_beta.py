"""Draw the figure of docs/alpha-beta.md: feasible pairs of digits MLPs by width.

The benchmark records one run for each of four seeds at each width, computes the losses at
the end of each run, and intersects the constraints from all steps. Exact recordings show
the boundary without estimation errors. Takes about four minutes on 2 cores.
"""

import tempfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import tyro
import xarray as xr
from figures import save_figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from saving import save_results

import analyzers
import trajstore
from analyzers.conditions import plots
from train.loop import train
from train.models.mlp import mlp
from train.protocols.record import attrs
from train.protocols.replay import replay
from train.settings import Training
from train.workloads.catalogue import WORKLOADS, settings_of

WIDTHS = (16, 64, 256)
DRAWN = 64
"""The width that the panel of margins shows."""

BITS = 16384
"""Signs per gradient: few, because the nets are small."""


def record(training: Training, path: Path, **options: Any) -> xr.Dataset:
    """Record a training run; return the products and losses that the condition compares."""
    observe = partial(
        trajstore.Recorder,
        path,
        samples=training.batch_size,
        sketch_bits=BITS,
        attrs=attrs(training),
        **options,
    )
    train(training, observe)
    run = trajstore.open_run(path)
    losses = replay(run)["reference_loss"]
    return analyzers.alpha_beta(run, reference_losses=losses).compute()


def record_width(training: Training, width: int, seeds: int, directory: Path) -> Any:
    """Record a run of this width for each seed."""
    name = training.workload
    WORKLOADS[name] = replace(
        WORKLOADS[name], model=lambda *_: mlp([64, width, width, 10])
    )
    return [
        record(replace(training, seed=seed), directory / f"{width}-{seed}.zarr")
        for seed in track(range(seeds), description=f"width {width}")
    ]


def pair(feasible: xr.Dataset) -> list[float]:
    """Return the feasible pair with the smallest sum."""
    return [float(feasible[name]) for name in ("best_alpha", "best_beta")]


def draw(
    recorded: dict[int, list[xr.Dataset]], sets: dict[int, list[xr.Dataset]]
) -> None:
    """Draw the margins of one width, and the boundaries of all widths."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    alpha = np.linspace(0, 2 * pair(sets[DRAWN][1])[0], 251)[1:]
    beta = np.linspace(0, alpha[-1] - 0.1, 250)
    margins = analyzers.margin(recorded[DRAWN], alpha, beta)
    boundaries = [analyzers.smallest_beta(s, alpha) for s in sets[DRAWN]]
    plots.feasible_set(margins, sets[DRAWN][1], boundaries, ax=left)
    left.set_title(f"width {DRAWN}, {len(recorded[DRAWN])} seeds", fontsize="medium")
    alpha = np.geomspace(0.1, 20, 400)
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(sets)))
    for (width, feasible), color in zip(sets.items(), colors, strict=True):
        low, middle, high = (
            alpha - analyzers.smallest_beta(s, alpha) for s in feasible
        )
        right.semilogx(alpha, middle, color=color, label=f"width {width}")
        low, high = low.fillna(0.1), high.fillna(0.1)
        right.fill_between(alpha, low, high, color=color, alpha=0.25, linewidth=0)
        best = pair(feasible[1])
        right.plot(best[0], best[0] - best[1], "*", color=color, markersize=9)
    right.axhline(0.1, color="0.6", linestyle="--", linewidth=0.8)
    right.set(xlim=(alpha[0], alpha[-1]), ylim=(0, None))
    right.set(xlabel=r"$\alpha$", ylabel=r"largest $\alpha - \beta$")
    right.set_title("boundaries, with one standard error", fontsize="medium")
    right.legend(fontsize="small", frameon=False, loc="upper left")
    save_figure(figure, "alpha-beta")


def main(
    *, epochs: int = 3, batch_size: int = 16, lr: float = 0.3, seeds: int = 4
) -> None:
    """Record the runs, draw the figure and save the results.

    Parameters
    ----------
    epochs, batch_size, lr
        Settings of every training run.
    seeds : int
        Number of runs at each width.
    """
    mpl.use("agg")
    training = replace(
        settings_of("digits-mlp"),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        record_samples=True,
    )
    results: dict[str, Any] = {"training": asdict(training), "seeds": seeds}
    recorded, sets = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        for width in WIDTHS:
            recorded[width] = record_width(training, width, seeds, Path(directory))
            sets[width] = [
                analyzers.feasible_set(recorded[width], n_stderr=n) for n in (-1, 0, 1)
            ]
        # With 0 seeds, the call records nothing, and only sets the workload's width to DRAWN.
        record_width(training, DRAWN, 0, Path(directory))
        whole = [
            record(
                replace(training, seed=seed),
                Path(directory) / f"exact-{seed}.zarr",
                exact=True,
            )
            for seed in track(range(seeds), description="whole gradients")
        ]
    draw(recorded, sets)
    table = Table("width", "steps", "stricter", "smallest pair", "looser")
    results["widths"] = {}
    for width, feasible in sets.items():
        pairs = [pair(s) for s in feasible]
        results["widths"][width] = pairs
        shown = [f"{a:.3f}, {b:.3f}" for a, b in pairs]
        table.add_row(str(width), str(int(feasible[1]["n_steps"])), *shown)
    exact = pair(analyzers.feasible_set(whole))
    results["exact"] = {"width": DRAWN, "pair": exact}
    table.add_row(f"{DRAWN}, exact", "", "", f"{exact[0]:.3f}, {exact[1]:.3f}", "")
    save_results(results, "alpha_beta")
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
