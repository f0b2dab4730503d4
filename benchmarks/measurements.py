"""Compare all measurements of one recording with the exact two-run protocol.

The benchmark compares cosines of gradients several steps apart, distances between parameters,
and gamma: of the gradient, without and with weight decay, of the update, and of the gradients
of fixed batches and of all data. It reports errors over standard errors. All steps of a run are
probed with the same signs, so the errors of its cosines and distances are dependent; cosines
and distances are therefore taken from several recordings with different signs. Takes about
15 minutes on 2 cores.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import xarray as xr
from rich.console import Console
from rich.progress import track
from rich.table import Table
from saving import save_results

import analyzers
import trajstore
from train.loop import train
from train.protocols.two_run import two_run
from train.settings import Training
from train.workloads.catalogue import settings_of

DECAY = 5e-4
DIRECTIONS: dict[str, tuple[str, float]] = {
    "gradient": ("gradient", 0.0),
    "gradient with weight decay": ("gradient", DECAY),
    "update": ("update", 0.0),
    "gradients of ten fixed batches": ("fixed_batches", 0.0),
    "gradient of all data": ("full_batch", 0.0),
}
LAGGED = {
    "cosine": "cosine of gradients 1 to 50 steps apart",
    "orthogonal_cosine": "the same cosine, orthogonal to x - x*",
    "distance": "distance between the parameters at these steps",
}


def directions(training: Training, directory: Path) -> dict[str, dict[str, Any]]:
    """Return the errors of gamma by direction, of one recording against two exact runs."""
    path = directory / "run.zarr"
    progress = partial(track, description="recorded")
    train(training, partial(trajstore.Recorder, path, updates=True), progress)
    run = trajstore.open_run(path)
    results = {}
    for title, (direction, decay) in DIRECTIONS.items():
        exact = two_run(
            lambda observe, title=title: train(
                training, observe, partial(track, description=title)
            ),
            direction=direction,
            weight_decay=decay,
        )
        rows = run if direction == "gradient" else run.measured(direction)
        estimated = analyzers.path_geometry(rows, weight_decay=decay).compute()
        # The last steps are excluded, because x - x* is as short as an update in them.
        is_before_end = exact.step.values < run.n_steps - run.spec.steps_per_epoch // 2
        results[title] = scores([estimated], exact, "gamma", is_before_end)
    return results


def lagged(training: Training, directory: Path, seeds: int) -> dict[str, Any]:
    """Return the errors of cosines and distances in recordings with different signs."""
    record = partial(trajstore.Recorder, probes=1024)
    exact_path = directory / "exact.zarr"
    train(training, partial(record, exact_path, exact=True))
    compare = partial(analyzers.lagged_gradients, every=5)
    exact = compare(trajstore.open_run(exact_path)).compute()
    estimated = []
    for seed in track(range(seeds), description="random signs"):
        path = directory / f"{seed}.zarr"
        train(training, partial(record, path, seed=seed))
        estimated.append(compare(trajstore.open_run(path)).compute())
    is_known = np.isfinite(exact.cosine.values)
    return {
        title: scores(estimated, exact, name, is_known)
        for name, title in LAGGED.items()
    }


def scores(
    estimated: Sequence[xr.Dataset], exact: xr.Dataset, name: str, chosen: Any
) -> dict[str, Any]:
    """Return statistics of the errors of a quantity, over the chosen elements."""
    errors = np.array(
        [(e[name].values - exact[name].values)[chosen] for e in estimated]
    )
    z = errors / np.array([e[f"{name}_stderr"].values[chosen] for e in estimated])
    return {
        "mean": float(exact[name].values[chosen].mean()),
        "rms error": float(np.sqrt((errors**2).mean())),
        "std of z": float(z.std()),
        "largest |z|": float(np.abs(z).max()),
        "count": int(z.size),
    }


def main(*, epochs: int = 8, measure_every: int = 11, seeds: int = 8) -> None:
    """Measure, print and save the results.

    Parameters
    ----------
    epochs : int
        Epochs of the digits ResNet; recordings for cosines and distances have
        half as many.
    measure_every : int
        Steps between measurements of the fixed batches.
    seeds : int
        Number of recordings with different random signs.
    """
    training = replace(
        settings_of("digits-resnet"),
        epochs=epochs,
        measure_every=measure_every,
        full_gradients=True,
    )
    short = replace(settings_of("digits-resnet"), epochs=max(1, epochs // 2))
    with tempfile.TemporaryDirectory() as directory:
        results = directions(training, Path(directory))
        results |= lagged(short, Path(directory), seeds)
    save_results(results, "measurements")
    table = Table("measured", "mean", "rms error", "std of z", "largest |z|", "count")
    for title, row in results.items():
        table.add_row(
            title,
            f"{row['mean']:.4f}",
            f"{row['rms error']:.5f}",
            f"{row['std of z']:.2f}",
            f"{row['largest |z|']:.1f}",
            str(row["count"]),
        )
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
