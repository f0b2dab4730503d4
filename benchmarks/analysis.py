"""Measure how fast steps are analysed, beside the machine's own matrix product.

A synthetic run of the size of a ResNet-18, one epoch a window, is analysed again and
again, in turn with float32 matrix products on the same number of threads, so that both
meet the same state of a noisy machine. All is counted: reading, decoding references and
sketches, the regression, the contraction. The work that cannot be avoided, as operations:
two per parameter and step for the contraction, and the rotation of every sketch as it is
computed.
"""

import json
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import dask
import numpy as np
import tyro
from dask.callbacks import Callback
from rich.console import Console
from rich.progress import track
from synthetic import RESNET18, write_run
from threadpoolctl import threadpool_limits

import analyzers
import trajstore
from trajstore.rotation import MAX_BLOCK, factors

RESULTS = Path(__file__).parent / "results" / "analysis.json"
SIDE = 3072
"""Rows and columns of the matrices."""


class TaskTimes(Callback):
    """Seconds in tasks by name, on Dask's threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._started: dict[Any, float] = {}

    def _pretask(self, key: Any, _dsk: Any, _state: Any) -> None:
        self._started[key] = time.perf_counter()

    def _posttask(self, key: Any, *_: Any) -> None:
        name = key[0] if isinstance(key, tuple) else key
        taken = time.perf_counter() - self._started[key]
        self.seconds[name.rpartition("-")[0] or name] += taken


def product_rate(threads: int, seconds: float) -> float:
    """Measure float32 matrix products for a while, operations per second."""
    a = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    out = np.empty_like(a)
    n, started = 0, time.perf_counter()
    with threadpool_limits(threads, user_api="blas"):
        while time.perf_counter() - started < seconds:
            np.matmul(a, a, out=out)
            n += 1
    return 2 * SIDE**3 * n / (time.perf_counter() - started)


def step_operations(run: trajstore.Run) -> tuple[float, float]:
    """Operations of the contraction and of the rotation of one step."""
    bits = run.spec.sketch_bits
    rotation = 2 * 2 * bits * sum(factors(min(bits, MAX_BLOCK)))
    return 2 * run.layout.n_params, rotation


def measure(run: trajstore.Run, *, rounds: int, threads: int) -> dict[str, Any]:
    """Analyse and multiply matrices in turn."""
    analysis, product, times = [], [], TaskTimes()
    geometry = analyzers.path_geometry(run)
    for _ in track(range(rounds), "analysing"):
        product.append(product_rate(threads, seconds=2))
        started = time.perf_counter()
        with (
            threadpool_limits(1, user_api="blas"),
            dask.config.set(scheduler="threads", num_workers=threads),
            times,
        ):
            geometry.compute()
        analysis.append(run.n_steps / (time.perf_counter() - started))
        product.append(product_rate(threads, seconds=2))
    contraction, rotation = step_operations(run)
    beside = np.array(product).reshape(rounds, 2).mean(1)
    ratios = np.array(analysis) * (contraction + rotation) / beside
    return {
        "threads": threads,
        "parameters": run.layout.n_params,
        "steps": run.n_steps,
        "windows": run.n_windows,
        "steps per second": float(np.median(analysis)),
        "operations of the contraction per step": contraction,
        "operations of the rotation per step": rotation,
        "matrix product, operations per second": float(np.median(product)),
        "analysis over matrix product": float(np.median(ratios)),
        "ratios of the rounds": ratios.tolist(),
        "contraction alone over matrix product": float(
            np.median(ratios) * contraction / (contraction + rotation)
        ),
        "thread seconds per 391 steps": {
            name: 391 * seconds / run.n_steps / rounds
            for name, seconds in sorted(times.seconds.items())
            if seconds > 0.1
        },
    }


def main(
    n_params: int = RESNET18,
    n_steps: int = 4 * 4096,
    rounds: int = 5,
    threads: int = len(os.sched_getaffinity(0)),
    directory: Path | None = None,
) -> None:
    """Measure and write `results/analysis.json`.

    Parameters
    ----------
    n_params : int
        Parameters of the synthetic run.
    n_steps : int
        Its steps, in epochs of 391.
    rounds : int
        How many times it is analysed.
    threads : int
        Threads of Dask, and of the matrix product.
    directory : Path, optional
        Where the run is kept; one that is there already is used again.
    """
    with tempfile.TemporaryDirectory() as temporary:
        path = (directory or Path(temporary)) / "analysis.zarr"
        if not path.exists():
            write_run(path, n_params=n_params, n_steps=n_steps, steps_per_epoch=391)
        results = measure(trajstore.open_run(path), rounds=rounds, threads=threads)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    Console().print_json(data=results)


if __name__ == "__main__":
    tyro.cli(main)
