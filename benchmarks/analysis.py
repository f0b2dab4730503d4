"""Measure the speed of an analysis relative to the machine's own matrix product.

The benchmark analyses a synthetic run several times; it has the size of a ResNet-18, and one
window per epoch. Analyses alternate with float32 matrix products on the same number of threads,
so that other load on the machine affects both. The analysis is timed first on single-threaded
worker processes, as ``traj-analyze --workers`` starts them, and then on the threads of one
process, which compete for Python's global lock. The time includes reading, decoding anchors
and sketches, the regression, and the contraction of sketches with the target. The operations
counted are two per parameter and step in the contraction, which no implementation can avoid, and
the products with small matrices that rotate a sketch in NumPy. Compiled loops rotate with fewer
operations, so a second ratio counts the contraction alone.
"""

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
from saving import save_results
from synthetic import RESNET18, write_run
from threadpoolctl import threadpool_limits

import analyzers
import trajstore
from analyzers._execution.cluster import connected
from trajstore.format.arrays import MAX_BLOCK
from trajstore.sketch.rotation import factors

SIDE = 3072  # rows and columns of the matrices


def product_rate(threads: int, seconds: float) -> float:
    """Return the operations per second of float32 matrix products."""
    a = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    out = np.empty_like(a)
    n, started = 0, time.perf_counter()
    with threadpool_limits(threads, user_api="blas"):
        while time.perf_counter() - started < seconds:
            np.matmul(a, a, out=out)
            n += 1
    return 2 * SIDE**3 * n / (time.perf_counter() - started)


def step_operations(run: trajstore.Run) -> tuple[float, float]:
    """Return the operations per step in the contraction and in the rotation."""
    bits = run.spec.sketch_bits
    rotation = 2 * 2 * bits * sum(factors(min(bits, MAX_BLOCK)))
    return 2 * run.layout.n_params, rotation


def analysis_rate(geometry: xr.Dataset) -> float:
    """Run the analysis once, and return the steps per second."""
    started = time.perf_counter()
    geometry.compute()
    return geometry.sizes["step"] / (time.perf_counter() - started)


def measure(run: trajstore.Run, *, rounds: int, threads: int) -> dict[str, Any]:
    """Alternate between analyses and matrix products, and return rates and ratios."""
    geometry = analyzers.path_geometry(run)
    rates: dict[str, list[float]] = {"workers": [], "threads": []}
    products = [product_rate(threads, seconds=2)]
    with connected(workers=threads) as client:
        client.wait_for_workers(threads)
        # Workers import the package before the time is taken.
        client.run(import_module, "analyzers")
        for _ in track(range(rounds), "on workers"):
            rates["workers"].append(analysis_rate(geometry))
            products.append(product_rate(threads, seconds=2))
    on_threads = dask.config.set(scheduler="threads", num_workers=threads)
    with threadpool_limits(1, user_api="blas"), on_threads:
        for _ in track(range(rounds), "on threads"):
            rates["threads"].append(analysis_rate(geometry))
            products.append(product_rate(threads, seconds=2))
    contraction, rotation = step_operations(run)
    share = contraction / (contraction + rotation)
    product = np.array(products)
    # Each analysis is compared with the mean of the product rates before and after it.
    product_rates = np.reshape((product[1:] + product[:-1]) / 2, (2, rounds))
    ratios = {
        name: np.array(steps) * (contraction + rotation) / products_nearby
        for (name, steps), products_nearby in zip(
            rates.items(), product_rates, strict=True
        )
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
                ("contraction over matrix product", share * ratios[name]),
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
        Steps of the synthetic run, in epochs of 391.
    rounds : int
        Number of analyses.
    threads : int
        Workers or threads of Dask, and threads of the matrix product.
    directory : Path, optional
        Directory for the run; an existing run is reused.
    """
    with tempfile.TemporaryDirectory() as temporary:
        path = (directory or Path(temporary)) / "analysis.zarr"
        if not path.exists():
            write_run(path, n_params=n_params, n_steps=n_steps, steps_per_epoch=391)
        results = measure(trajstore.open_run(path), rounds=rounds, threads=threads)
    save_results(results, "analysis")
    Console().print_json(data=results)


if __name__ == "__main__":
    tyro.cli(main)
