"""Compare errors at the same bytes with another checkout of this repository, such as an older one.

Both versions record the same training, each with seeds of its own, and analyse what they have
recorded. The script prints and saves rms errors mid-run (without the first and the last epoch)
and the bytes of a step, of both versions; docs/estimator.md shows their ratios. For one training:

    python benchmarks/gains.py ../older --only mlp13k
"""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from calibration_errors import compare_means, compare_steps, exact_geometry, train
from calibration_loops import (
    cnn,
    heavy_tails,
    label_noise,
    lstm,
    perceptron,
    residual,
    transformer,
)
from rich.console import Console
from rich.table import Table
from saving import RESULTS, save_results

import analyzers
import trajstore


class Trained(NamedTuple):
    """A training run of the comparison."""

    start: Any  # takes a seed, returns the loop
    optimizer: str
    epoch: int = 20  # steps
    epochs: int = 15


# Older checkouts cannot import the trainings of the calibration.
TRAININGS: dict[str, Trained] = {
    "mlp1500": Trained(partial(perceptron, widths=(12, 32, 28, 4)), "SGD"),
    "mlp5k": Trained(partial(perceptron, widths=(20, 58, 58, 5)), "SGD"),
    "mlp13k": Trained(partial(perceptron, widths=(20, 100, 100, 5)), "SGD"),
    "mlp82k": Trained(partial(perceptron, widths=(20, 273, 273, 5)), "SGD"),
    "label noise": Trained(label_noise, "SGD", 25, 12),
    "lstm": Trained(lstm, "SGD", 25, 12),
    "heavy": Trained(heavy_tails, "momentum"),
    "momentum": Trained(
        partial(perceptron, widths=(20, 96, 80, 8), lr=0.05, momentum=0.9),
        "momentum",
        60,
        6,
    ),
    "cnn": Trained(partial(cnn, n_steps=300), "momentum"),
    "residual": Trained(partial(residual, n_steps=320), "momentum", 40, 8),
    "transformer": Trained(transformer, "AdamW", 100, 6),
}


def measure(name: str, seeds: int) -> dict[str, float]:
    """Record a training with the version that is imported; return rms errors and bytes."""
    start, _, epoch, n_epochs = TRAININGS[name]
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
    middle = slice(epoch, n_steps - epoch)
    result = {
        "parameters": sum(kept.layers.values()),
        "bytes": size / seeds / n_steps,
    }
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
    seeds: int = 12,
    measure_here: bool = False,
    out: Path = RESULTS / "gains.json",
) -> None:
    """Print and save errors and bytes of this version and of another one.

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
    out : Path
        JSON file to write; results of other trainings in the file are kept.
    """
    torch.set_num_threads(1)
    if measure_here:
        sys.stdout.write(json.dumps(measure(only[0], seeds)) + "\n")
        return
    table = Table(title="errors and bytes, new over old", box=None)
    for name in only or TRAININGS:
        new, old = (
            measure_in(c, name, seeds) for c in (Path(__file__).parents[1], checkout)
        )
        if not table.columns:
            for column in ("", *new):
                table.add_column(column, justify="right")
        table.add_row(name, *(f"{new[key] / old[key]:.2f}" for key in new))
        kept = json.loads(out.read_text()) if out.exists() else {}
        optimizer = TRAININGS[name].optimizer
        found = {"optimizer": optimizer, "seeds": seeds, "new": new, "old": old}
        save_results(kept | {name: found}, out)
    Console(width=150).print(table)


if __name__ == "__main__":
    tyro.cli(main)
