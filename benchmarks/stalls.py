"""Measure how long a flush holds up the training thread.

A small net is trained with the default sketch, on as many threads as there are cores, so
the writer thread has no core to itself. Rows are flushed far more often than by default, so
that many flushes are timed. The benchmark times the submission of a full buffer to the writer
thread and, in every step, the hooks of the recorder, some of which run during a write.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from saving import save_results
from stopwatch import Stopwatch, timed_recorder
from torch import nn

PERCENTILE = 99.5


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Return the median, a high percentile, the maximum and the number of times."""
    values = 1000 * np.array(seconds)
    return {
        "median": float(np.median(values)),
        f"percentile {PERCENTILE}": float(np.percentile(values, PERCENTILE)),
        "largest": float(values.max()),
        "count": len(values),
    }


def main(
    n_steps: int = 12_000, flush_rows: int = 50, directory: Path | None = None
) -> None:
    """Measure and write `results/stalls.json`.

    Parameters
    ----------
    n_steps : int
        Optimizer steps.
    flush_rows : int
        Rows per flush.
    directory : Path, optional
        Directory for the store.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs = torch.randn(128, 64)
    submit = Stopwatch()
    with (
        tempfile.TemporaryDirectory(dir=directory) as temporary,
        timed_recorder(
            Path(temporary) / "run.zarr",
            model,
            optimizer,
            steps_per_epoch=1000,
            flush_rows=flush_rows,
        ) as (recorder, before, after),
    ):
        queue: Any = recorder._session.queue
        queue.submit = submit.timing(queue.submit)
        for _ in track(range(n_steps), "training"):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    hooks = np.array(before.seconds) + np.array(after.seconds)
    results = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "flush on the training thread, ms": milliseconds(submit.seconds),
        "hooks of a step, ms": milliseconds(hooks.tolist()),
    }
    save_results(results, "stalls")
    Console().print_json(data=results)


if __name__ == "__main__":
    tyro.cli(main)
