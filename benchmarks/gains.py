"""Compare errors at the same bytes with another checkout of this repository, such as an older one.

Both versions record the same training, each with seeds of its own, and analyse what they have
recorded. The script prints the ratios of rms errors mid-run (without the first and the last epoch),
and of the bytes of a step. For a training of `calibration_trainings.py`:

    python benchmarks/gains.py ../older --only mlp13k --seeds 4
"""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from calibration_errors import compare_means, compare_steps, exact_geometry, train
from calibration_loops import cnn, heavy_tails, lstm, perceptron, transformer
from rich.console import Console
from rich.table import Table

import analyzers
import trajstore

# Older checkouts cannot import the trainings of the calibration: start, steps of an epoch, epochs.
TRAININGS: dict[str, tuple[Any, int, int]] = {
    "mlp579": (partial(perceptron, widths=(8, 48, 3)), 20, 15),
    "mlp5k": (partial(perceptron, widths=(20, 58, 58, 5)), 20, 15),
    "mlp13k": (partial(perceptron, widths=(20, 100, 100, 5)), 20, 15),
    "mlp82k": (partial(perceptron, widths=(20, 273, 273, 5)), 20, 15),
    "lstm": (lstm, 25, 12),
    "heavy": (heavy_tails, 20, 15),
    "momentum": (
        partial(perceptron, widths=(20, 96, 80, 8), lr=0.05, momentum=0.9),
        60,
        6,
    ),
    "cnn": (partial(cnn, n_steps=300), 20, 15),
    "transformer": (transformer, 100, 6),
}


def measure(name: str, seeds: int) -> dict[str, float]:
    """Record a training with the version that is imported; return rms errors and bytes."""
    start, epoch, n_epochs = TRAININGS[name]
    n_steps, loop = epoch * n_epochs, start(0)
    with tempfile.TemporaryDirectory() as folder:
        recorders = [
            trajstore.Recorder(
                Path(folder) / f"{seed}.zarr",
                loop.model,
                loop.optimizer,
                seed=seed,
                total_steps=n_steps,
                steps_per_epoch=epoch,
                reference_every=epoch,
            )
            for seed in range(seeds)
        ]
        kept = train(loop, n_steps)
        for recorder in recorders:
            recorder.close()
        files = [f for f in Path(folder).rglob("*") if f.is_file()]
        size = sum(f.stat().st_size for f in files if f.suffix != ".json")
        runs = [
            trajstore.open_run(Path(folder) / f"{seed}.zarr") for seed in range(seeds)
        ]
        found = [analyzers.path_geometry(run).compute() for run in runs]
    exact = [exact_geometry(kept, kept.iterates[-1], 0.0)] * seeds
    middle, result = slice(epoch, n_steps - epoch), {"bytes": size / seeds / n_steps}
    # loLR has no part from the distance: its error is that of the sketch.
    for title, quantity in (
        ("gamma", "gamma"),
        ("distance", "distance"),
        ("sketch", "lolr"),
    ):
        steps = compare_steps(found, exact, quantity).errors[:, middle]
        means = compare_means(found, exact, quantity).errors[:, 1:-1]
        result[f"{title}, step"] = float(np.sqrt(np.nanmean(steps**2)))
        result[f"{title}, epoch mean"] = float(np.sqrt(np.nanmean(means**2)))
    return result


def measure_in(checkout: Path, name: str, seeds: int) -> dict[str, float]:
    """Return the result of `measure` with the version in a checkout."""
    command = [sys.executable, __file__, str(checkout), "--only", name]
    done = subprocess.run(
        [*command, "--seeds", str(seeds), "--measure-here"],
        env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(
    checkout: Path,
    /,
    *,
    only: tuple[str, ...] = (),
    seeds: int = 4,
    measure_here: bool = False,
) -> None:
    """Print errors and bytes of this version, relative to those of another one.

    Parameters
    ----------
    checkout : Path
        Root of the other version.
    only : str
        Names of the trainings; all by default.
    seeds : int
        Number of recorders.
    measure_here : bool
        Print the errors of the imported version as JSON.
    """
    torch.set_num_threads(1)
    if measure_here:
        sys.stdout.write(json.dumps(measure(only[0], seeds)) + "\n")
        return
    table = Table(title="errors and bytes, new over old", box=None)
    rows = {}
    for name in only or TRAININGS:
        new, old = (
            measure_in(c, name, seeds) for c in (Path(__file__).parents[1], checkout)
        )
        rows[name] = {key: new[key] / old[key] for key in new}
    for column in ("", *next(iter(rows.values()))):
        table.add_column(column, justify="right")
    for name, ratios in rows.items():
        table.add_row(name, *(f"{ratio:.2f}" for ratio in ratios.values()))
    Console(width=150).print(table)


if __name__ == "__main__":
    tyro.cli(main)
