"""Measure the constants of `trajstore.planning`.

Each network is trained twice: once under recorders with several window lengths and several
numbers of signs, and once under recorders with several bases. Recorders do not change the
training. The MLP is also trained for fewer epochs, to distinguish the effect of window
lengths in epochs from that of lengths relative to the run. The distance to the end is compared
with the sum of later learning rates in trainings of ``calibration.py``. Takes about half an
hour on 2 cores.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from calibration_errors import train as train_and_keep
from calibration_trainings import TRAININGS, Training
from planning_tables import plain_error_of
from rich.console import Console
from saving import RESULTS, save_results
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

import analyzers
import trajstore
from train.loop import train as train_workload
from train.observer import Log
from train.workloads.catalogue import settings_of
from trajstore.format.arrays import ITEM_SIZE
from trajstore.format.run_spec import BASIS
from trajstore.planning.errors import REMAINING
from trajstore.planning.estimate import Plan

WORKLOADS: dict[str, Any] = {
    "digits ResNet": settings_of("digits-resnet"),
    "digits MLP": settings_of("digits-mlp"),
    "English transformer": settings_of("english-transformer"),
    "digits MLP, 8 epochs": replace(settings_of("digits-mlp"), epochs=8),
    "LSTM": TRAININGS["lstm"],
    "heavy tails": TRAININGS["heavy"],
    "GRU": TRAININGS["gru"],
    "label noise": TRAININGS["label noise"],
    "ratings": TRAININGS["ratings"],
    "weight decay": TRAININGS["decay"],
}
"""Training runs to measure: of `train`, and of ``calibration_trainings.py``."""

FITTED = (
    "digits ResNet",
    "digits MLP",
    "English transformer",
    "LSTM",
    "heavy tails",
    "GRU",
    "label noise",
    "ratings",
    "weight decay",
)
"""Runs from which plans extrapolate."""

BRIEF = ("GRU", "label noise", "ratings", "weight decay")
"""Fitted runs that are measured with windows of one epoch only."""

POWERS = ("mlp5k", "heavy", "mlp13k", "lstm")
"""Trainings in which the distance to the end is compared with later learning rates."""

CONSTANTS = Path(__file__).parents[1] / "trajstore" / "planning" / "measured.py"
"""Module that ends with the constants of the fitted runs."""

WINDOWS_PER_EPOCH = (8, 4, 2, 1, 1 / 2, 1 / 4)
SIGNS = (1 << 12, 1 << 18)
LENGTHS = ("steps_per_epoch", "total_steps")
BASES = (0, 1)
"""Sizes of the basis other than a recorder's default."""


@dataclass(frozen=True, slots=True)
class LogToAll:
    """A log that passes every call on to several recorders."""

    recorders: Sequence[Log]

    def log(self, **scalars: float | Tensor) -> None:
        for recorder in self.recorders:
            recorder.log(**scalars)

    def measure(self, name: str, **scalars: float | Tensor) -> None:
        for recorder in self.recorders:
            recorder.measure(name, **scalars)


def record(
    experiment: Any, directory: Path, options: Sequence[Mapping[str, Any]]
) -> list[trajstore.Run]:
    """Train once under several recorders, and open their runs."""
    paths = [directory / f"{i}.zarr" for i in range(len(options))]

    @contextmanager
    def observe(*args: Any, **lengths: int) -> Iterator[Log]:
        with ExitStack() as stack:
            yield LogToAll(
                [
                    stack.enter_context(
                        trajstore.Recorder(path, *args, **lengths, **option)
                    )
                    for path, option in zip(paths, options, strict=True)
                ]
            )

    if isinstance(experiment, Training):
        lengths = {name: getattr(experiment, name) for name in LENGTHS}
        loop = experiment.start(0)
        with observe(loop.model, loop.optimizer, **lengths):
            train_and_keep(loop, experiment.total_steps)
    else:
        train_workload(experiment, observe)
    return [trajstore.open_run(path) for path in paths]


def errors_mid_run(run: trajstore.Run) -> dict[str, float]:
    """Return the rms standard error of gamma in the middle of the run, and its two parts."""
    # Plans know how much the known sums of windows help; here, probes alone tell distances.
    geometry = analyzers.path_geometry(without_facts(run)).compute()
    is_middle = (geometry.epoch > 0) & (geometry.epoch < run.n_epochs - 1)
    squares = geometry.gamma_stderr**2
    from_distance = (geometry.gamma * geometry.distance_stderr / geometry.distance) ** 2
    return {
        name: math.sqrt(float(values.mean()))
        for name, values in {
            "stderr of gamma": squares.where(is_middle),
            "from signs": (squares - from_distance).where(is_middle),
            "from distance": from_distance.where(is_middle),
        }.items()
    }


def without_facts(run: trajstore.Run) -> trajstore.Run:
    """Return a run as if its store did not know the optimizer."""
    document = replace(run.stored.document, optimizer=())
    stored = replace(run.stored, document=document, _arrays={}, _reported=set())
    return trajstore.Run(stored)


def powers(training: Training) -> dict[str, float]:
    """Return the exponent of the distance to the end by the sum of later rates, mid-run."""
    n_steps, exponents = training.total_steps, {}
    for rate, remaining in REMAINING.items():
        loop = training.start(0)
        share = np.linspace(0, 1, n_steps, endpoint=False)
        rates = -np.diff(remaining(np.linspace(0, 1, n_steps + 1))) * n_steps
        for group in loop.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = group.get("initial_lr", group["lr"])
        schedule = LambdaLR(loop.optimizer, lambda k, r=rates: r[min(k, len(r) - 1)])
        iterates = train_and_keep(loop._replace(schedule=schedule), n_steps).iterates
        distance = [np.linalg.norm(x - iterates[-1]) for x in iterates[:-1]]
        middle = slice(training.steps_per_epoch, -training.steps_per_epoch)
        logs = np.log(remaining(share)), np.log(distance)
        exponents[rate] = float(np.polyfit(*(values[middle] for values in logs), 1)[0])
    return exponents


def compression(run: trajstore.Run) -> dict[str, float]:
    """Return the ratio of bytes on disk to bytes in memory, by array."""
    ratios = {}
    for name in run.stored.document.arrays:
        array = run.stored.array(name)
        raw = array.size * ITEM_SIZE[str(array.dtype)]
        ratios[name] = bytes_of_chunks(Path(run.location) / name) / raw
    return ratios


def bytes_of_chunks(path: Path) -> int:
    """Return the size of all chunks of an array on disk."""
    return sum(f.stat().st_size for f in (path / "c").rglob("*") if f.is_file())


def measure(
    experiment: Any, directory: Path, per_epoch: Sequence[float]
) -> dict[str, Any]:
    """Record with several window lengths, and with several numbers of signs."""
    epoch = steps_per_epoch(experiment)
    lengths = [round(epoch / n) for n in per_epoch]
    options: list[dict[str, int]] = [{"reference_every": n} for n in lengths]
    options += [{"sketch_bits": bits} for bits in SIGNS]
    *runs, default = record(experiment, directory, [*options, {}])
    errors = [errors_mid_run(run) for run in runs]
    titles = [f"{length / epoch:.3f}" for length in lengths]
    return {
        "parameters": default.layout.n_params,
        "padded parameters": default.layout.size,
        "tensors": len(default.layout.names),
        "steps": default.n_steps,
        "epochs": default.n_epochs,
        "plain error": Plan(spec=default.spec).plain_error,
        "by epochs in a window": dict(zip(titles, errors, strict=False)),
        "by signs": dict(zip(map(str, SIGNS), errors[len(lengths) :], strict=True)),
        "bytes on disk over bytes in memory": compression(default),
    }


def measure_bases(
    experiment: Any, directory: Path, per_epoch: Sequence[float]
) -> dict[str, Any]:
    """Record with smaller bases, each with several window lengths."""
    epoch = steps_per_epoch(experiment)
    lengths = [round(epoch / n) for n in per_epoch]
    options = [{"basis": r, "reference_every": n} for r in BASES for n in lengths]
    errors = iter(
        [errors_mid_run(run) for run in record(experiment, directory, options)]
    )
    return {
        "by basis": {
            str(basis): {f"{n / epoch:.3f}": next(errors) for n in lengths}
            for basis in BASES
        }
    }


def steps_per_epoch(experiment: Any) -> int:
    """Return the steps in an epoch, as an observer of a training of one step gets them."""
    if isinstance(experiment, Training):
        return experiment.steps_per_epoch
    lengths: list[int] = []

    @contextmanager
    def observe(*_: Any, steps_per_epoch: int, total_steps: int) -> Iterator[Log]:
        del total_steps
        lengths.append(steps_per_epoch)
        yield LogToAll([])

    train_workload(replace(experiment, max_steps=1), observe)
    return lengths[0]


def constants(results: Mapping[str, Any]) -> str:
    """Return the source text of `trajstore.planning.measured.MEASURED_RUNS`."""
    lines = ["MEASURED_RUNS: Final = {"]
    for name in FITTED:
        run = results[name]
        by_length = run["by epochs in a window"]
        by_basis = {**run["by basis"], str(BASIS): by_length}
        plain = plain_error_of(run)
        ratios = {
            basis: tuple(round(at["from signs"] / plain, 3) for at in found.values())
            for basis, found in sorted(by_basis.items())
        }
        shares = tuple(float(f"{float(n) / run['epochs']:.3g}") for n in by_length)
        lines += [
            f'"{name}": MeasuredErrors(',
            f"shares={shares},",
            f"ratios={{{', '.join(f'{b}: {r}' for b, r in ratios.items())}}},",
            "),",
        ]
    return "\n".join([*lines, "}", '"""Measured by ``benchmarks/planning.py``."""'])


def write_constants(results: Mapping[str, Any]) -> None:
    """Write the constants into the package; format the file afterwards."""
    before = CONSTANTS.read_text().partition("MEASURED_RUNS: Final")[0]
    CONSTANTS.write_text(before + constants(results) + "\n")


def main(*, only: str | None = None, out: Path = RESULTS / "planning.json") -> None:
    """Measure, print and save the results.

    Parameters
    ----------
    only : str, optional
        Name of the only training to measure; other results in the file are kept.
    out : Path
        JSON file to write.
    """
    results = json.loads(out.read_text()) if only else {}
    for name in [only] if only else WORKLOADS:
        with tempfile.TemporaryDirectory() as directory:
            experiment, root = WORKLOADS[name], Path(directory)
            per_epoch = (1,) if name in BRIEF else WINDOWS_PER_EPOCH
            results[name] = measure(experiment, root / "lengths", per_epoch)
            results[name] |= measure_bases(experiment, root / "bases", per_epoch)
        Console().print_json(json.dumps({name: results[name]}))
    if only is None:
        results["power"] = {name: powers(TRAININGS[name]) for name in POWERS}
    save_results(results, out)
    if all(name in results for name in FITTED):
        write_constants(results)


if __name__ == "__main__":
    tyro.cli(main)
