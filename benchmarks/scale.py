"""Measure how the cost of a store and its analysis grows with steps and parameters.

The synthetic runs have the real format, and differ in length and in size. The benchmark
measures files, bytes per step, the time to open the store, the speed of the analysis with
one and with two single-threaded worker processes, and the peak memory of a worker. Analyses
with one and with two workers alternate, so that other load affects both. The documented figures:

    python benchmarks/scale.py --n-steps 32768 --n-params 25600000 --steps-per-epoch 1000
    python benchmarks/scale.py --rounds 0

The second command writes, opens and analyses the full size once: a quarter of an hour, and 9 GB
of disk in `--directory`.
"""

import resource
import shutil
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from saving import save_results
from synthetic import write_run

import analyzers
import trajstore
from analyzers._execution.cluster import connected


def describe(path: Path) -> dict[str, Any]:
    """Return the number of files, the bytes per step, and the times to open the store."""
    files = [file for file in path.rglob("*") if file.is_file()]
    times = []
    for _ in range(5):
        started = time.perf_counter()
        run = trajstore.open_run(path)
        steps = run.steps
        opened = time.perf_counter()
        steps[["loss"]].sel(epoch=run.n_epochs // 2).load()
        times.append((opened - started, time.perf_counter() - opened))
    of_steps = [
        f for f in files if "references" not in f.parts and "final" not in f.parts
    ]
    return {
        "steps": run.n_steps,
        "parameters": run.layout.n_params,
        "windows": run.n_windows,
        "files": len(files),
        "bytes per step": sum(f.stat().st_size for f in files) / run.n_steps,
        "without anchors": sum(f.stat().st_size for f in of_steps) / run.n_steps,
        "seconds to open": float(np.median(times, 0)[0]),
        "seconds to open, the first time": times[0][0],
        "seconds to select an epoch": float(np.median(times, 0)[1]),
    }


def analyse(path: Path, n_workers: int) -> tuple[float, float]:
    """Analyse with worker processes; return steps per second and the peak GiB of a worker."""
    run = trajstore.open_run(path)
    shutil.rmtree(path.with_suffix(".analysis.zarr"), ignore_errors=True)
    with connected(workers=n_workers) as client:
        client.wait_for_workers(n_workers)
        # Workers import the package before the time is taken.
        client.run(import_module, "analyzers")
        started = time.perf_counter()
        analyzers.store_geometry(run)
        taken = time.perf_counter() - started
        peaks = client.run(_peak_memory).values()
    return run.n_steps / taken, max(peaks) / 2**30


def _peak_memory() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(path: Path, *, rounds: int) -> dict[str, Any]:
    """Return the measurements of one store."""
    if rounds == 0:
        rate, peak = analyse(path, n_workers=2)
        described = describe(path)
        return described | {
            "seconds to analyse, 2 workers": described["steps"] / rate,
            "steps per second, 2 workers": rate,
            "peak GiB of a worker, 2 workers": peak,
        }
    rates: dict[int, list[float]] = {1: [], 2: []}
    memory: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for n_workers in (1, 2):
            rate, peak = analyse(path, n_workers)
            rates[n_workers].append(rate)
            memory[n_workers].append(peak)
    ratios = np.array(rates[2]) / np.array(rates[1])
    return describe(path) | {
        "steps per second, 1 worker": float(np.median(rates[1])),
        "steps per second, 2 workers": float(np.median(rates[2])),
        "2 workers over 1": float(np.median(ratios)),
        "peak GiB of a worker, 1 worker": max(memory[1]),
        "peak GiB of a worker, 2 workers": max(memory[2]),
    }


def main(
    n_steps: int = 450_000,
    n_params: int = 25_600_000,
    steps_per_epoch: int = 5000,
    rounds: int = 2,
    directory: Path | None = None,
) -> None:
    """Measure and write `results/scale.json`, or, with 0 rounds, `full_size.json`.

    Parameters
    ----------
    n_steps : int
        Largest number of steps; a half and a quarter are measured too.
    n_params : int
        Largest number of parameters; a half and a quarter are measured too.
    steps_per_epoch : int
        Steps in a window.
    rounds : int
        Number of analyses of each store; with 0, only the largest store is measured, and
        analysed once with two workers.
    directory : Path, optional
        Directory for the stores, of which only one exists at a time.
    """
    sizes = [(n_steps // 4, n_params // k) for k in (4, 2, 1)]
    sizes += [(n_steps // k, n_params) for k in (2, 1)]
    sizes = sizes if rounds else sizes[-1:]
    results = []
    for steps, params in sizes:
        with tempfile.TemporaryDirectory(dir=directory) as temporary:
            path = Path(temporary) / "run.zarr"
            write_run(
                path, n_params=params, n_steps=steps, steps_per_epoch=steps_per_epoch
            )
            results.append(measure(path, rounds=rounds))
            Console().print_json(data=results[-1])
    save_results(results, "scale" if rounds else "full_size")


if __name__ == "__main__":
    tyro.cli(main)
