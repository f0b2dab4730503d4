"""Compare the time of a recorded step with and without a tracker.

Copies of one network train in turns in one process: all are recorded, and recorders of some
also write TensorBoard events. The processor time of the training thread in a turn is compared
with that of the copy without a tracker, in the same round. Takes about a minute; needs
``pip install "trajstore[tensorboard]"``.
"""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import tyro
from digits_steps import timed_steps
from rich.console import Console
from rich.progress import track
from saving import RESULTS, save_results

from train.models.resnet import digits_resnet
from trajstore import Recorder
from trajstore.trackers import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVALS = (100, 10, 1)
"""Steps from one report to the next, of every tracker."""

PLAIN = "no tracker"


def main(
    *, rounds: int = 40, steps: int = 20, out: Path = RESULTS / "trackers.json"
) -> None:
    """Measure, print and save the results.

    Parameters
    ----------
    rounds : int
        Number of turns of each copy.
    steps : int
        Number of steps in a turn.
    out : Path
        File for the results.
    """
    torch.set_num_threads(1)
    turns: dict[str, Callable[[int], float]] = {}
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        names = [PLAIN, *(f"every {n}" for n in INTERVALS)]
        for name, every in zip(names, (0, *INTERVALS), strict=True):
            torch.manual_seed(0)
            model = digits_resnet()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            to = f"tensorboard:{Path(directory) / name}"
            recorder = Recorder(
                Path(directory) / f"{name}.zarr",
                model,
                optimizer,
                steps_per_epoch=20,
                flush_rows=20,  # so that every turn contains the work of a flush
                report_to=[Reporter(to=to, every=every)] if every else (),
            )
            opened = stack.enter_context(recorder)
            turns[name] = timed_steps(model, opened, optimizer, time.thread_time)
            turns[name](steps)
            seconds[name] = []
        order = np.random.default_rng(0)
        for _ in track(range(rounds), description="turns"):
            for name in order.permutation(names):
                seconds[name].append(turns[name](steps))
    ratios = {
        name: np.array(seconds[name]) / np.array(seconds[PLAIN]) for name in names[1:]
    }
    results = {
        "milliseconds of a step": 1e3 * float(np.median(seconds[PLAIN])) / steps,
        "ratio": {name: float(np.median(ratio)) for name, ratio in ratios.items()},
        "quartiles": {
            name: np.quantile(ratio, (0.25, 0.75)).tolist()
            for name, ratio in ratios.items()
        },
    }
    save_results(results, out)
    Console().print(results)


if __name__ == "__main__":
    tyro.cli(main)
