"""Measure how uncertain the means of epochs become at the end of a schedule that decays to 0.

Perceptrons, and two trainings of ``calibration.py``, follow a cosine. Standard errors of the means
of the last fifth of the epochs are compared with those mid-run, and with errors: every iterate and
gradient is kept. Takes about a minute.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import torch
import tyro
from calibration_errors import compare_means, exact_geometry
from calibration_errors import train as train_and_keep
from calibration_loops import Loop, perceptron
from calibration_trainings import TRAININGS, Training
from rich.console import Console
from saving import RESULTS, save_results
from torch.optim.lr_scheduler import CosineAnnealingLR

import analyzers
import trajstore

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "momentum": {"lr": 0.05, "momentum": 0.9},
    "Adam": {"lr": 1e-3, "is_adam": True},
}


def decaying(seed: int, *, hidden: int, optimizer: str) -> Loop:
    """Return a perceptron whose learning rate decays to 0 in 1200 steps."""
    loop = perceptron(seed, widths=(20, hidden, hidden, 5), **OPTIMIZERS[optimizer])
    return loop._replace(schedule=CosineAnnealingLR(loop.optimizer, 1200))


CASES: dict[str, Training] = {
    **{
        f"perceptron of width {hidden}, {optimizer}": Training(
            start=partial(decaying, hidden=hidden, optimizer=optimizer),
            cases={},
            steps_per_epoch=40,
            epochs=30,
        )
        for hidden in (58, 100)
        for optimizer in OPTIMIZERS
    },
    "cnn, momentum": TRAININGS["cnn"],
    "residual, momentum": TRAININGS["residual"],
}
"""Trainings by name; perceptrons have two hidden layers."""


def measure(training: Training, seeds: int) -> dict[str, Any]:
    """Return standard errors of the means of gamma by epoch, and how errors compare with them."""
    geometries, exact = [], []
    for seed in range(seeds):
        loop = training.start(seed)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "run.zarr"
            recorder = trajstore.Recorder(
                path,
                loop.model,
                loop.optimizer,
                steps_per_epoch=training.steps_per_epoch,
                total_steps=training.total_steps,
                seed=seed,
            )
            with recorder:
                kept = train_and_keep(loop, training.total_steps)
            found = analyzers.path_geometry(trajstore.open_run(path))
            geometries.append(found.compute())
        exact.append(exact_geometry(kept, kept.iterates[-1], 0.0))
    compared = compare_means(geometries, exact, "gamma")
    stated = np.sqrt(np.mean(compared.stderrs[..., 0] ** 2, axis=0))
    z = compared.errors[..., 0] / compared.stderrs[..., 0]
    n = training.epochs
    middle = float(np.sqrt(np.mean(stated[n // 4 : -(n // 4)] ** 2)))
    last = slice(n - max(n // 5, 1), n)
    return {
        "parameters": kept.iterates.shape[1],
        "mid-run": middle,
        "last fifth over mid-run": (stated[last] / middle).tolist(),
        "error over standard error": float(np.sqrt(np.mean(z[:, last] ** 2))),
    }


def main(*, seeds: int = 3, out: Path = RESULTS / "planning_ends.json") -> None:
    """Measure, print and save the results.

    Parameters
    ----------
    seeds : int, default: 3
        Number of runs of each training.
    out : Path
        JSON file to write.
    """
    torch.set_num_threads(1)
    with dask.config.set(scheduler="synchronous"):
        results = {name: measure(training, seeds) for name, training in CASES.items()}
    save_results(results, out)
    Console().print(results)


if __name__ == "__main__":
    tyro.cli(main)
