"""Measure what recording costs on a large workload, and compare with the plan.

Plain and recorded training take turns, step by step, in two processes. The ratios are medians over
pairs of steps; the peak memory of a process is that of its whole life. Afterwards the losses of all
batches at the final iterate are computed, and the pairs of alpha and beta that hold for the whole
run are found. The default, Pythia-70M at full size on stand-in tokens, takes about half
an hour on 2 cores and 12 GB of memory.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro
from rich.console import Console
from rich.progress import track
from saving import RESULTS, save_results
from torch.utils.data import default_collate

import analyzers
import trajstore
from train.loop import train
from train.observer import Log, NullLog
from train.protocols.record import attrs
from train.settings import Training
from train.workloads.catalogue import WORKLOADS, settings_of
from trajstore.planning.estimate import Plan

FloatArray = npt.NDArray[np.float64]
BYTES_PER_KIB = 1024


class Turns:
    """Forwards what a loop logs, and waits for a line of input once a step."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._started: float | None = None
        self.measure, self.log_samples = log.measure, log.log_samples

    def log(self, **scalars: Any) -> None:
        """Log; with a loss, print the seconds of the turn, and wait for the next turn."""
        self._log.log(**scalars)
        if "loss" not in scalars:
            return
        self.end()
        sys.stdin.readline()
        self._started = time.perf_counter()

    def end(self) -> None:
        """Print the seconds of a turn."""
        if self._started is not None:
            print(time.perf_counter() - self._started, flush=True)


def take_turns(name: str, steps: int, batch_size: int, store: str) -> None:
    """Train in a child process; record if `store` is not empty."""
    training = training_of(name, steps, batch_size)

    @contextmanager
    def observe(*arguments: Any, **options: Any) -> Iterator[Log]:
        if not store:
            turns = Turns(NullLog())
            yield turns
            turns.end()
            return
        samples, facts = training.batch_size, attrs(training)
        record = partial(trajstore.Recorder, store, samples=samples, attrs=facts)
        with record(*arguments, **options) as recorder:
            turns = Turns(recorder)
            yield turns
            turns.end()

    train(training, observe)
    # The parent has read all lines so far.
    sys.stdin.readline()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(usage.ru_maxrss * BYTES_PER_KIB, flush=True)


def training_of(name: str, steps: int, batch_size: int) -> Training:
    """Return the published settings, with the embedded data and small batches."""
    return replace(
        settings_of(name),
        data="embedded",
        batch_size=batch_size,
        max_steps=steps,
        record_samples=True,
        device="cpu",
    )


def compete(name: str, steps: int, batch_size: int, store: Path) -> dict[str, float]:
    """Let plain and recorded training take turns; return times and peaks of memory."""
    common = [sys.executable, __file__, "--child", name, str(steps), str(batch_size)]
    plain, recorded = children = [
        subprocess.Popen(
            [*common, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        for path in ("", str(store))
    ]
    times = np.empty((steps, 2))
    for i in track(range(steps), "Pairs of steps", console=Console(stderr=True)):
        # The order alternates, because the first of two steps may find warmer caches.
        for child in children if i % 2 else children[::-1]:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write("\n")
            child.stdin.flush()
            times[i, children.index(child)] = float(child.stdout.readline())
    peaks = [float(child.communicate("\n")[0]) for child in (plain, recorded)]
    # The first steps allocate memory.
    warm = times[min(3, steps - 1) :]
    return {
        "seconds a plain step": float(np.median(warm[:, 0])),
        "recorded over plain": float(np.median(warm[:, 1] / warm[:, 0])),
        "recorded over plain, all steps": float(times[:, 1].sum() / times[:, 0].sum()),
        "peak GB, plain": peaks[0] / 1e9,
        "peak GB, recorded": peaks[1] / 1e9,
    }


def losses_at_the_end(run: trajstore.Run, training: Training) -> FloatArray:
    """Return the loss of every step's batch at the last iterate, float64 (step,)."""
    # `traj-train replay` computes the losses of all examples instead.
    workload = WORKLOADS[training.workload]
    splits = workload.data(training)
    model = workload.model(splits, training)
    last = trajstore.parameters_at(run)
    values = {name: torch.from_numpy(array) for name, array in last.items()}
    model.load_state_dict(values, strict=False)
    losses = np.empty(run.n_steps)
    with torch.no_grad():
        for i, indices in enumerate(run.samples.values):
            inputs, targets = default_collate([splits.train[int(j)] for j in indices])
            losses[i] = float(workload.task.loss(model(inputs), targets))
    return losses


def describe(store: Path, training: Training) -> dict[str, float]:
    """Return sizes, plan and alpha-beta pairs of a recorded run."""
    run = trajstore.open_run(store)
    plan = Plan(spec=run.spec)
    losses = losses_at_the_end(run, training)
    condition = analyzers.alpha_beta(run, reference_losses=losses).compute()
    pairs = analyzers.feasible_set(condition)
    size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    return {
        "parameters": run.layout.n_params,
        "steps": run.n_steps,
        "store, MB": size / 1e6,
        "planned store, MB": plan.disk / 1e6,
        "planned memory, GB": plan.memory / 1e9,
        "alpha, smallest sum": float(pairs["best_alpha"]),
        "beta, smallest sum": float(pairs["best_beta"]),
    }


def main(
    *,
    workload: str = "pythia-70m",
    steps: int = 60,
    batch_size: int = 1,
    out: Path = RESULTS / "large_workloads.json",
    child: tuple[str, int, int, str] | None = None,
) -> None:
    """Measure what recording costs on a large workload.

    Parameters
    ----------
    workload : str, default: "pythia-70m"
        Name of the workload, which trains on its embedded data.
    steps : int, default: 60
        Number of steps of each process.
    batch_size : int, default: 1
        Number of examples in a batch.
    out : Path, optional
        JSON file for the results.
    child : tuple, optional
        Act as a child process: workload, steps, batch size and store.
    """
    if child is not None:
        take_turns(*child)
        return
    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory) / "run.zarr"
        found: dict[str, Any] = {
            "workload": workload,
            "threads": torch.get_num_threads(),
        }
        found |= compete(workload, steps, batch_size, store)
        found |= describe(store, training_of(workload, steps, batch_size))
    save_results(found, out)
    for name, value in found.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        Console().print(f"{name}: {shown}", highlight=False)


if __name__ == "__main__":
    tyro.cli(main)
