"""Measure how long a flush holds up the training thread.

A small net is trained with the default sketch, on as many threads as there are cores, so
that the writer's thread has none of its own. Rows are flushed far more often than by
default, for many flushes to be seen. Timed are the hand-over of a full buffer to the
writer's thread, and the hooks of every step, of which some run while the writer is at work.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from torch import nn

from trajstore.recording.recorder import Recorder

RESULTS = Path(__file__).parent / "results" / "stalls.json"
PERCENTILE = 99.5


class Timed:
    """A function whose calls are timed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.seconds: list[float] = []

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        started = time.perf_counter()
        self._function(*args, **kwargs)
        self.seconds.append(time.perf_counter() - started)


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Return the median, the percentile and the largest."""
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
        Rows in a flush.
    directory : Path, optional
        Where the store is made.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs = torch.randn(128, 64)
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        recorder = Recorder(
            Path(temporary) / "run.zarr",
            model,
            optimizer,
            steps_per_epoch=1000,
            flush_rows=flush_rows,
        )
        submit = Timed(recorder._hand_over.submit)
        before, after = Timed(recorder._measure_before), Timed(recorder._measure_after)
        recorder._hand_over.submit = submit  # type: ignore[method-assign]
        recorder._measure_before = before  # type: ignore[method-assign]
        recorder._measure_after = after  # type: ignore[method-assign]
        for _ in track(range(n_steps), "training"):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
        recorder.close()
    hooks = np.array(before.seconds) + np.array(after.seconds)
    results = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "flush on the training thread, ms": milliseconds(submit.seconds),
        "hooks of a step, ms": milliseconds(hooks.tolist()),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    Console().print_json(data=results)


if __name__ == "__main__":
    tyro.cli(main)
