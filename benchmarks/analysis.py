"""Measure how fast steps are analysed, beside the machine's own matrix product.

A synthetic run of the size of a ResNet-18, one epoch a window, is analysed again and
again, in turn with float32 matrix products on as many threads, so that both meet the same
state of a noisy machine: by worker processes of one thread, as ``traj-analyze --workers``
starts them, and by the threads of one process, which wait for Python's lock. All is counted: reading, decoding references and
sketches, the regression, the contraction. The work that cannot be avoided, as operations:
two per parameter and step for the contraction, and the rotation of every sketch as it is
computed.
"""

import json
import os
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import dask
import numpy as np
import tyro
import xarray as xr
from rich.console import Console
from rich.progress import track
from synthetic import RESNET18, write_run
from threadpoolctl import threadpool_limits

import analyzers
import trajstore
from analyzers._execution.cluster import connected
from trajstore.sketch.rotation import MAX_BLOCK, factors

RESULTS = Path(__file__).parent / "results" / "analysis.json"
SIDE = 3072
"""Rows and columns of the matrices."""


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


def analysis_rate(geometry: xr.Dataset) -> float:
    """Analyse once; steps per second."""
    started = time.perf_counter()
    geometry.compute()
    return geometry.sizes["step"] / (time.perf_counter() - started)


def measure(run: trajstore.Run, *, rounds: int, threads: int) -> dict[str, Any]:
    """Analyse and multiply matrices in turn."""
    geometry = analyzers.path_geometry(run)
    rates: dict[str, list[float]] = {"workers": [], "threads": []}
    products = [product_rate(threads, seconds=2)]
    with connected(workers=threads) as client:
        client.wait_for_workers(threads)
        # What is imported first belongs to no analysis.
        client.run(import_module, "analyzers")
        for _ in track(range(rounds), "by workers"):
            rates["workers"].append(analysis_rate(geometry))
            products.append(product_rate(threads, seconds=2))
    on_threads = dask.config.set(scheduler="threads", num_workers=threads)
    with threadpool_limits(1, user_api="blas"), on_threads:
        for _ in track(range(rounds), "by threads"):
            rates["threads"].append(analysis_rate(geometry))
            products.append(product_rate(threads, seconds=2))
    contraction, rotation = step_operations(run)
    product = np.array(products)
    beside = np.reshape((product[1:] + product[:-1]) / 2, (2, rounds))
    ratios = {
        name: np.array(of_steps) * (contraction + rotation) / of_product
        for (name, of_steps), of_product in zip(rates.items(), beside, strict=True)
    }
    return {
        "cores": threads,
        "parameters": run.layout.n_params,
        "steps": run.n_steps,
        "windows": run.n_windows,
        "operations of the contraction per step": contraction,
        "operations of the rotation per step": rotation,
        "matrix product, operations per second": float(np.median(product)),
        **{
            f"{quantity}, {name}": float(np.median(values))
            for name in rates
            for quantity, values in (
                ("steps per second", rates[name]),
                ("analysis over matrix product", ratios[name]),
            )
        },
        "ratios of the rounds, workers": ratios["workers"].tolist(),
    }


def main(
    n_params: int = RESNET18,
    n_steps: int = 65536,
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
        Workers or threads of Dask, and threads of the matrix product.
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
