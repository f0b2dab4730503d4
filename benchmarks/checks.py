"""Measure what the checks of a recording cost, with checks against without, in the same code.

The loop: copies of one network train in turns in one process, one of them with a recorder whose
`LoopWatch` only follows the parameters of the optimizer, and whose writer computes no checks of
chunks. The store: a copy of it loses its checks and its seal, which makes it a store of format
version 1, and both are opened, read and analysed in turns. All figures are processor time, so
that other work on the machine changes them little. Takes about two minutes.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import tyro
from digits_steps import timed_steps
from rich.console import Console
from rich.progress import track
from saving import RESULTS, save_results
from torch import nn

import analyzers
from train.models.resnet import digits_resnet
from trajstore import Recorder, open_run
from trajstore.format.checks import SEALED, is_sealed
from trajstore.recording.loops import watch, windows
from trajstore.store import row_checks

KINDS = ("with checks", "without")
CHECKS = ("checks", "pending_checks", "checksum")
"""Attributes of the root document that version 1 lacks."""


class Ratio(NamedTuple):
    """Seconds with checks, relative to those without."""

    of_medians: float
    of_minima: float
    median: float  # of the ratios of turns that follow each other
    milliseconds: float  # median with checks


@contextmanager
def no_checks() -> Iterator[None]:
    """Leave out what the recorder checks in every step, and checks of chunks."""

    def follow(self: watch.LoopWatch, *_: Any, **__: Any) -> None:
        self.follow()

    def nothing(*_: Any, **__: Any) -> None:
        """Check nothing."""

    with (
        mock.patch.object(watch.LoopWatch, "begin", follow),
        mock.patch.object(watch.LoopWatch, "end", nothing),
        mock.patch.object(watch.GradientPoint, "_note", nothing),
        mock.patch.object(windows.Windows, "check_anchor", nothing),
        mock.patch.object(row_checks, "check_of", return_value=0),
    ):
        yield


def training(
    path: Path, width: int, **options: Any
) -> tuple[Recorder, Callable[..., Any]]:
    """Return a recorder, and a function that takes steps and returns their seconds."""
    torch.manual_seed(0)
    if width:
        model: nn.Module = nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)
        )
    else:
        model = digits_resnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    recorder = Recorder(path, model, optimizer, steps_per_epoch=20, **options)
    # With the writer's thread, which computes the checks of chunks.
    take = timed_steps(model, recorder, optimizer, time.process_time, flush=True)
    return recorder, take


def in_turns(
    functions: dict[str, Callable[[], float]], rounds: int, label: str
) -> Ratio:
    """Call the functions in turns, and compare their seconds."""
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    order = np.random.default_rng(0)
    for kind in KINDS:
        functions[kind]()
    for _ in track(range(rounds), description=label):
        for kind in order.permutation(KINDS):
            seconds[kind].append(functions[kind]())
    on, off = (np.array(seconds[kind]) for kind in KINDS)
    return Ratio(
        float(np.median(on) / np.median(off)),
        float(on.min() / off.min()),
        float(np.median(on / off)),
        1e3 * float(np.median(on)),
    )


def steps(directory: Path, width: int, *, rounds: int, n_steps: int) -> Ratio:
    """Compare the time of recorded steps, training included."""
    path = directory / f"{width}"
    recorder, with_checks = training(path / "on.zarr", width)
    other, without = training(path / "off.zarr", width)

    def off() -> float:
        with no_checks():
            return without(n_steps)

    functions = {KINDS[0]: lambda: with_checks(n_steps), KINDS[1]: off}
    label = f"steps, {width or 'resnet'}"
    ratio = in_turns(functions, rounds, label)
    recorder.close()
    other.close()
    return ratio


def strip(path: Path, without: Path) -> None:
    """Copy a store, and remove its checks and its seal."""
    shutil.copytree(path, without)
    root = without / "zarr.json"
    text = root.read_bytes()
    assert is_sealed(text), SEALED
    document = json.loads(text)
    for name in CHECKS:
        document["attributes"].pop(name, None)
    document["attributes"]["format_version"] = 1
    root.write_text(json.dumps(document))
    for segments in without.rglob("checks"):
        shutil.rmtree(segments)


def size(path: Path) -> int:
    """Return the bytes of all files of a store."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def reading(path: Path, *, rounds: int) -> dict[str, Ratio]:
    """Compare opening, reading and analysing a store with its copy without checks."""
    without = path.with_name("without.zarr")
    strip(path, without)

    def timed(function: Callable[[Path], object], store: Path) -> Callable[[], float]:
        def call() -> float:
            started = time.process_time()
            function(store)
            return time.process_time() - started

        return call

    def analysed(store: Path) -> object:
        return analyzers.path_geometry(open_run(store)).compute(scheduler="synchronous")

    tasks: dict[str, Callable[[Path], object]] = {
        "opening": open_run,
        "opening and reading all rows": lambda store: open_run(store).steps.load(),
        "analysing": analysed,
    }
    return {
        name: in_turns(
            {KINDS[0]: timed(task, path), KINDS[1]: timed(task, without)}, rounds, name
        )
        for name, task in tasks.items()
    }


def main(
    *, rounds: int = 40, n_steps: int = 40, out: Path = RESULTS / "checks.json"
) -> None:
    """Measure, print and save the results.

    Parameters
    ----------
    rounds : int
        Number of turns with and without checks.
    n_steps : int
        Number of steps in a turn.
    out : Path
        File for the results.
    """
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for width in (128, 1024, 0):
            ratio = steps(directory, width, rounds=rounds, n_steps=n_steps)
            results[f"step of {width or 'resnet'}"] = ratio._asdict()
            path = directory / f"{width}" / "on.zarr"
            found = reading(path, rounds=rounds)
            stores = path, path.with_name("without.zarr")
            results[f"store of {width or 'resnet'}"] = {
                "bytes": size(stores[0]) / size(stores[1]),
                **{task: ratio._asdict() for task, ratio in found.items()},
            }
    save_results(results, out)
    Console().print(results)


if __name__ == "__main__":
    tyro.cli(main)
