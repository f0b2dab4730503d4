"""Measure how long the first recording on a machine is delayed, because it compiles kernels.

Every case records 100 steps in a process of its own, once with an empty cache of compiled kernels
and once with the cache that this has filled. The delay is the difference, from importing the
recorder to the end of the last step; it is the median of several repetitions. Takes about four
minutes on 2 cores.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import tyro
from rich.console import Console
from rich.table import Table
from saving import RESULTS, save_results
from torch import nn

import trajstore


class Case(NamedTuple):
    """A network, and how it is trained."""

    widths: tuple[int, ...]  # of the layers of a perceptron
    threads: int = 1
    optimizer: str = "SGD"
    dtype: torch.dtype = torch.float32
    batch: int = 8


MILLION = (500, 1000, 600)

CASES = {
    "4,650 parameters": Case((64, 62, 10)),
    "55,000 parameters": Case((64, 512, 42)),
    "55,000 parameters, bfloat16": Case((64, 512, 42), dtype=torch.bfloat16),
    "51,000 parameters, 300 tensors, AdamW": Case((18,) * 151, optimizer="AdamW"),
    "1.1 M parameters": Case(MILLION),
    "1.1 M parameters, 2 threads": Case(MILLION, threads=2),
    "1.1 M parameters, 2 threads, RMSprop": Case(
        MILLION, threads=2, optimizer="RMSprop"
    ),
}


def record(case: Case, n_steps: int) -> float:
    """Record steps of a network; return the seconds from importing the recorder to the end."""
    torch.set_num_threads(case.threads)
    layers = [
        nn.Linear(n_in, n_out)
        for n_in, n_out in zip(case.widths, case.widths[1:], strict=False)
    ]
    model = nn.Sequential(*layers).to(case.dtype)
    optimizer = getattr(torch.optim, case.optimizer)(model.parameters(), lr=1e-4)
    batch = torch.randn(case.batch, case.widths[0], dtype=case.dtype)
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        path = Path(directory) / "run.zarr"
        with trajstore.Recorder(path, model, optimizer, steps_per_epoch=25):
            for _ in range(n_steps):
                optimizer.zero_grad()
                model(batch).square().mean().backward()
                optimizer.step()
            seconds = time.perf_counter() - started
    return seconds


def measure(name: str, n_steps: int) -> dict[str, float]:
    """Record a case with an empty cache and with the cache that it has filled."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--child", name, "--steps", str(n_steps)]
        environment = os.environ | {"NUMBA_CACHE_DIR": cache}
        empty, filled = (
            float(subprocess.check_output(command, env=environment, text=True))
            for _ in range(2)
        )
    return {"empty cache": empty, "filled cache": filled, "delay": empty - filled}


def main(
    *,
    cases: tuple[str, ...] = tuple(CASES),
    repetitions: int = 3,
    steps: int = 100,
    out: Path = RESULTS / "first_recording.json",
    child: str = "",
) -> None:
    """Measure, print and save the results.

    Parameters
    ----------
    cases : tuple of str
        Names of the cases to measure.
    repetitions : int, default: 3
        Number of recordings of each case with an empty cache.
    steps : int, default: 100
        Number of recorded steps.
    out : Path
        JSON file to write.
    child : str
        Name of a case to record in this process; the other processes of the benchmark use it.
    """
    if child:
        print(record(CASES[child], steps))
        return
    rows: list[dict[str, Any]] = []
    table = Table(
        "network", "empty cache", "filled cache", "delay", box=None, title="Seconds"
    )
    for name in cases:
        found = [measure(name, steps) for _ in range(repetitions)]
        row = {key: median(each[key] for each in found) for key in found[0]}
        rows.append({"case": name} | row)
        table.add_row(name, *(f"{seconds:.2f}" for seconds in row.values()))
    save_results(rows, out)
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
