"""Measure the cost of recording in time and memory.

Three processes, for plain training, recorded training and the two-run protocol, take turns
epoch by epoch, so that other load on the machine affects all of them. The benchmark then measures
the hooks of a ResNet-18, the parts of the recorder and its peak memory. Takes about 20
minutes on 2 cores; leave the machine otherwise idle.
"""

import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import overhead_cuda
import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from saving import RESULTS, save_results
from stopwatch import Stopwatch, timed_recorder
from torch import nn
from torch.nn import functional as F

import analyzers
import trajstore
from train.loop import train as train_workload
from train.models.resnet import cifar_resnet18, digits_resnet
from train.observer import Log, Track, unobserved
from train.protocols.two_run import two_run
from train.workloads.catalogue import settings_of
from trajstore.tracking import tracker
from trajstore.tracking.backends.cpu import coding, sketching
from trajstore.tracking.backends.cpu.addresses import Addresses
from trajstore.tracking.backends.cpu.backend import CPUBackend

EPOCHS = 25
MODES = ("plain", "recorded", "two-run")
TURNS = {"plain": 1, "recorded": 1, "two-run": 2}

PARTS: dict[str, tuple[Any, str]] = {
    "addresses of tensors": (Addresses, "of"),
    "random signs": (sketching, "draw_signs"),
    "row, whole": (CPUBackend, "measure"),
    "probes": (sketching, "probe"),
    "rotation": (sketching, "rotate"),
    "1-bit code": (coding, "code_signs"),
    "new anchor": (tracker.Tracker, "move"),
    "before step, whole": (tracker.Tracker, "before_step"),
    "after step, whole": (tracker.Tracker, "after_step"),
}
"""Timed functions. The times of a new anchor, rows and whole hooks contain those of other parts."""


def turns(mode: str, epochs: int) -> None:
    """Train in one mode in a child process; wait for a line of input before each epoch."""
    path = Path(tempfile.mkdtemp()) / "run.zarr"
    recorders: list[trajstore.Recorder] = []
    started = 0.0

    def begin() -> None:
        nonlocal started
        sys.stdin.readline()
        started = time.perf_counter()

    def end() -> None:
        # Pending writes belong to this turn.
        for recorder in recorders:
            recorder._session.background.wait()
        print(time.perf_counter() - started, flush=True)

    def record(*args: Any, **kwargs: Any) -> AbstractContextManager[Log]:
        recorders.append(trajstore.Recorder(path, *args, **kwargs))
        return recorders[0]

    n_turns = count()

    def take_turns(numbers: range) -> Iterable[int]:
        for number in numbers:
            if next(n_turns) > 0:
                end()
                begin()
            yield number

    warm_up()
    experiment = replace(settings_of("digits-resnet"), epochs=epochs)
    train: Callable[..., Any] = partial(train_workload, experiment, track=take_turns)
    begin()
    if mode == "two-run":
        two_run(train)
    else:
        train(record if mode == "recorded" else unobserved)
    recorders.clear()
    end()
    if mode == "recorded":
        begin()
        analyzers.path_geometry(trajstore.open_run(path)).compute()
        end()
    # The exit of a process takes a while, and must not disturb the turns of other modes.
    sys.stdin.readline()


def warm_up() -> None:
    """Take one step, because the first optimizer and step make torch import modules."""
    model = digits_resnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(model(torch.rand(64, 1, 8, 8)), torch.zeros(64).long()).backward()
    optimizer.step()


def compete(epochs: int) -> dict[str, float]:
    """Train in all modes, which take turns epoch by epoch; return the seconds by mode."""
    children = {
        mode: subprocess.Popen(
            [sys.executable, __file__, "--turns-of", mode, "--epochs", str(epochs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for mode in MODES
    }
    seconds = dict.fromkeys((*MODES, "analysis"), 0.0)

    def turn(mode: str) -> float:
        child = children[mode]
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        return float(child.stdout.readline())

    # The children import everything before their first turn.
    time.sleep(15)
    for _ in range(epochs):
        for mode in random.sample(MODES, len(MODES)):
            for _ in range(TURNS[mode]):
                seconds[mode] += turn(mode)
    seconds["analysis"] = turn("recorded")
    for child in children.values():
        child.communicate()
    return seconds


def ratios(repetitions: int, epochs: int, console: Console) -> dict[str, Any]:
    """Repeat `compete`, and return the ratios of times."""
    rows = [
        compete(epochs)
        for _ in track(range(repetitions), "digits ResNet", console=console)
    ]
    plain, recorded, twice, analysis = (
        np.array([row[name] for row in rows]) for name in (*MODES, "analysis")
    )
    return {
        "seconds, plain": float(np.median(plain)),
        "recorded over plain": median_and_interval(recorded / plain),
        "recorded and analysed over two-run": median_and_interval(
            (recorded + analysis) / twice
        ),
        "seconds, analysis": float(np.median(analysis)),
        "repetitions": repetitions,
        "epochs": epochs,
    }


def median_and_interval(values: Any) -> dict[str, float]:
    """Return the median of values and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (10_000, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def hooks(batch_size: int, steps: int, console: Console) -> dict[str, float]:
    """Time the steps of a ResNet-18 and the hooks of the recorder in these steps."""
    torch.manual_seed(0)
    model = cifar_resnet18()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(batch_size, 3, 32, 32)
    labels = torch.randint(10, (batch_size,))
    whole = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.zarr"
        with timed_recorder(path, model, optimizer, steps_per_epoch=steps // 2) as (
            _,
            before,
            after,
        ):
            title = f"ResNet-18, batch {batch_size}"
            for _ in track(range(steps), title, console=console):
                started = time.perf_counter()
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
                whole.append(time.perf_counter() - started)
    inside = np.add(before.seconds, after.seconds)[2:]
    plain = np.array(whole)[2:] - inside
    return {
        "step without hooks, ms": 1e3 * float(np.median(plain)),
        "hooks, ms": 1e3 * float(np.median(inside)),
        "hooks over step": float(np.median(inside) / np.median(plain)),
        "hooks over step, mean with window borders": float(
            inside.mean() / plain.mean()
        ),
    }


def parts(epochs: int, console: Console) -> dict[str, float]:
    """Return the microseconds per step in each part of the recorder, digits ResNet."""
    watches = {name: Stopwatch() for name in PARTS}
    originals = {
        name: getattr(owner, attribute) for name, (owner, attribute) in PARTS.items()
    }
    for name, (owner, attribute) in PARTS.items():
        setattr(owner, attribute, watches[name].timing(originals[name]))
    shown: Track = partial(track, description="parts", console=console)
    try:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "run.zarr"
            experiment = replace(settings_of("digits-resnet"), epochs=epochs)
            train_workload(experiment, partial(trajstore.Recorder, path), shown)
            n_steps = trajstore.open_run(path).n_steps
    finally:
        for name, (owner, attribute) in PARTS.items():
            setattr(owner, attribute, originals[name])
    return {name: 1e6 * sum(watch.seconds) / n_steps for name, watch in watches.items()}


def peak_memory() -> None:
    """Print the peak memory of a recorder in float32 vectors, as a child process."""
    torch.manual_seed(0)
    model = cifar_resnet18()
    n_params = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    with tempfile.TemporaryDirectory() as directory:
        # A small recording first, so that memory for imports and small writes is not counted.
        small = nn.Linear(4, 4)
        other = torch.optim.SGD(small.parameters(), lr=0.1)
        with trajstore.Recorder(Path(directory) / "small.zarr", small, other):
            small(torch.ones(1, 4)).sum().backward()
            other.step()
        before = resident()
        # This sets the reported peak back to the memory in use now.
        Path("/proc/self/clear_refs").write_text("5")
        path = Path(directory) / "run.zarr"
        with trajstore.Recorder(
            path, model, optimizer, steps_per_epoch=6, total_steps=240
        ) as recorder:
            for step in range(240):
                optimizer.step()
                if step == 100:
                    recorder.snapshot("middle")
    print((peak() - before) / (4 * n_params))


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """Return the peak resident memory in bytes since the last reset."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def child_value(*arguments: str) -> float:
    """Run this file in a child process, and return the number that it prints."""
    run = subprocess.run(
        [sys.executable, __file__, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(run.stdout)


def rows(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the title and the text of each result."""
    digits = results["digits ResNet"]
    for name in ("recorded over plain", "recorded and analysed over two-run"):
        value = digits[name]
        interval = f"({value['low']:.3f} to {value['high']:.3f})"
        yield f"digits ResNet: {name}", f"{value['median']:.3f} {interval}"
    for name, value in results["ResNet-18"].items():
        yield f"ResNet-18, {name}: hooks over step", f"{value['hooks over step']:.3f}"
    peak_vectors = results["peak memory, float32 vectors"]
    yield "ResNet-18: peak memory, float32 vectors", f"{peak_vectors:.2f}"
    for name, microseconds in results["parts, microseconds a step"].items():
        yield f"digits ResNet: {name}, us", f"{microseconds:.0f}"


def main(
    *,
    repetitions: int = 7,
    epochs: int = EPOCHS,
    out: Path | None = None,
    turns_of: str | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    tiny: bool = False,
) -> None:
    """Measure the cost of recording.

    Parameters
    ----------
    repetitions : int, default: 7
        Number of times that the modes are compared.
    epochs : int, default: 25
        Epochs of each run.
    out : Path, optional
        JSON file to write; default: ``overhead.json`` or ``overhead-cuda.json`` below
        ``results``.
    turns_of : str, optional
        Act as a child process: ``plain``, ``recorded``, ``two-run`` or ``memory``.
    device : {"cpu", "cuda"}, default: "cpu"
        Device of the training. With "cuda", ``overhead_cuda.py`` makes the measurements,
        in a few minutes.
    tiny : bool, default: False
        Try the benchmark for CUDA devices with tiny sizes, even on a CPU; the times
        are meaningless.
    """
    if turns_of == "memory":
        peak_memory()
        return
    if turns_of is not None:
        turns(turns_of, epochs)
        return
    console = Console()
    if device == "cuda":
        found = overhead_cuda.overhead(tiny=tiny, console=console)
        save_results(found, out or RESULTS / "overhead-cuda.json")
        console.print(overhead_cuda.table(found))
        return
    results: dict[str, Any] = {
        "machine": f"{torch.get_num_threads()} threads, torch {torch.__version__}",
        "digits ResNet": ratios(repetitions, epochs, console),
        "ResNet-18": {
            "batch 128": hooks(128, 14, console),
            "batch 16": hooks(16, 60, console),
        },
        "peak memory, float32 vectors": child_value("--turns-of", "memory"),
        "parts, microseconds a step": parts(5, console),
    }
    save_results(results, out or RESULTS / "overhead.json")
    table = Table("what", "measured", box=None, title="The cost of recording")
    for row in rows(results):
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    tyro.cli(main)
