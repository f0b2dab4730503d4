"""Compare stated with actual errors, on trainings that no constant was fitted to.

Many recorders with seeds of their own record one training run, which also keeps every iterate
and gradient. The exact geometry follows from these vectors in float64, by code that shares
nothing with the estimator. Means over seeds tell bias from spread. For every training the
benchmark reports, relative to the largest value that the quantity can have:

- ``error``: the rms error;
- ``z``: the rms of the error over the stated standard error, 1 if that is honest; and its
  uncertainty;
- ``t``: the mean error over seeds, in standard errors of that mean.

The middle excludes the first and the last epoch; the last epoch excludes the last two steps.
``--only mlp300k`` measures one training in about a minute, ``--compare old.json`` compares with
the results of another version, and everything takes about ten minutes on 2 cores with 12 seeds.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from calibration_errors import (
    Array,
    Kept,
    compare_means,
    compare_steps,
    exact_geometry,
    scores,
    train,
)
from calibration_report import comparison, outside, table_of
from calibration_trainings import TRAININGS, Case, Training
from rich.console import Console
from rich.progress import Progress
from saving import RESULTS, save_results

import analyzers
import trajstore
from analyzers.geometry.path_geometry import ESTIMATOR

QUANTITIES = ("gamma", "rsi", "eb", "lolr", "distance")
SPANS = ("first", "middle", "last")
SMALLEST_LAYER = 200
"""Elements of the smallest layer that is compared."""


def record(
    training: Training,
    seeds: int,
    directory: Path,
    advance: Callable[[], None],
    training_seed: int = 0,
    first_seed: int = 0,
) -> tuple[Kept, dict[str, list[trajstore.Run]]]:
    """Train once under the recorders of all cases, and open their runs by case."""
    numbers = range(first_seed, first_seed + seeds)
    loop = training.start(training_seed)
    options = {name: dict(case.recorder) for name, case in training.cases.items()}
    # Cases with the same options share their recordings.
    distinct = {json.dumps(o, sort_keys=True): o for o in options.values()}
    common = {
        "total_steps": training.total_steps,
        "steps_per_epoch": training.steps_per_epoch,
        # Also epochs of few steps have windows of their own.
        "reference_every": training.steps_per_epoch,
    }
    arguments = {
        (key, seed): {
            "path": directory / f"{i}-{seed}.zarr",
            "model": loop.model,
            "optimizer": loop.optimizer,
            "seed": seed,
            **common,
            **option,
        }
        for i, (key, option) in enumerate(distinct.items())
        for seed in numbers
    }
    recorders = {key: trajstore.Recorder(**given) for key, given in arguments.items()}

    def before_step(step: int) -> None:
        advance()
        if step == training.total_steps // 2:
            for recorder in recorders.values():
                recorder.snapshot("middle")

    def resume() -> None:
        for key, recorder in recorders.items():
            state = recorder.state_dict()
            recorder.close()
            recorders[key] = trajstore.Recorder(**arguments[key], resume=state)

    kept = train(loop, training.resume_at or training.total_steps, before_step)
    if training.resume_at is not None:
        resume()
        first = training.resume_at
        rest = train(
            loop, training.total_steps - first, lambda step: before_step(first + step)
        )
        kept = Kept(
            np.concatenate([kept.iterates[:-1], rest.iterates]),
            np.concatenate([kept.gradients, rest.gradients]),
            kept.layers,
        )
    for recorder in recorders.values():
        recorder.close()
    runs = {
        name: [trajstore.open_run(arguments[key, seed]["path"]) for seed in numbers]
        for name, option in options.items()
        for key in [json.dumps(option, sort_keys=True)]
    }
    return kept, runs


def measure_case(
    training: Training,
    case: Case,
    kept: Kept,
    runs: Sequence[trajstore.Run],
    others: tuple[Kept, trajstore.Run] | None,
    advance: Callable[[], None],
) -> dict[str, Any]:
    """Analyse all recordings of a case, and compare them with the exact geometry."""
    estimated, by_layer, exact = [], [], []
    for run in runs:
        reference, target = find_target(training, case, kept, run, others)
        if not exact or case.reference in {"epoch", "average"}:
            truth = exact_geometry(kept, target, case.weight_decay)
        exact.append(truth)
        options = {"reference": reference, "weight_decay": case.weight_decay}
        geometry = analyzers.path_geometry(run, **options).compute()
        estimated.append(geometry)
        if case.layers:
            layers = analyzers.path_geometry(run, **options, layers=True)
            by_layer.append(
                layers[
                    ["gamma", "distance", "gamma_stderr", "distance_stderr"]
                ].compute()
            )
        advance()
    last = training.total_steps - training.steps_per_epoch
    rows = {
        "first": slice(0, training.steps_per_epoch),
        "middle": slice(training.steps_per_epoch, last),
        "last": slice(last, training.total_steps - 2),
    }
    epochs = {"first": slice(0, 1), "middle": slice(1, -1), "last": slice(-1, None)}
    result: dict[str, Any] = {
        "parameters": sum(kept.layers.values()),
        "sizes of layers": list(kept.layers.values()),
        "steps": training.total_steps,
        "steps per epoch": training.steps_per_epoch,
        "optimizer": training.optimizer,
        "rate": training.rate,
        "sketch bits": runs[0].spec.sketch_bits,
        "seeds": len(runs),
        "estimator": ESTIMATOR,
        "bytes": np.mean([_size(Path(run.location)) for run in runs])
        / len(kept.gradients),
        "quantities": {},
    }
    for name in QUANTITIES:
        steps = compare_steps(estimated, exact, name)
        means = compare_means(estimated, exact, name)
        result["quantities"][name] = {
            part: {
                "step": scores(steps[:, rows[part]]),
                "mean": scores(means[:, epochs[part]]),
            }
            for part in SPANS
        }
    if case.layers:
        result["layers"] = {
            name: {
                layer: scores(errors[:, rows["middle"], i])
                for i, (layer, size) in enumerate(kept.layers.items())
                if size > SMALLEST_LAYER
            }
            for name in ("gamma", "distance")
            for errors in [compare_steps(by_layer, exact, name)]
        }
    return result


def find_target(
    training: Training,
    case: Case,
    kept: Kept,
    run: trajstore.Run,
    others: tuple[Kept, trajstore.Run] | None,
) -> tuple[Any, Array]:
    """Return the target of a case, for the analysis and as a flat vector."""
    middle = training.epochs // 2
    if case.reference == "snapshot":
        return "middle", kept.iterates[training.total_steps // 2]
    if case.reference == "another run":
        assert others is not None
        return others[1], others[0].iterates[-1]
    if case.reference == "epoch":
        # The target is the anchor that the store holds, not the iterate that it encodes.
        held = trajstore.parameters_at(run, middle)
    elif case.reference == "average":
        held = analyzers.average_of_epochs(run, range(middle, training.epochs))
    else:
        return "final", kept.iterates[-1]
    return held if case.reference == "average" else middle, np.concatenate(
        [values.ravel() for values in held.values()]
    )


def _size(path: Path) -> int:
    """Return the size of all files below a path, without the JSON documents."""
    return sum(
        f.stat().st_size for f in path.rglob("*") if f.is_file() and f.suffix != ".json"
    )


def measure(
    training: Training,
    seeds: int,
    directory: Path,
    phase: Callable[[str, int], Callable[[], None]],
    training_seed: int = 0,
    first_seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Record and analyse one training run; return the results by case."""
    n_steps = training.total_steps
    advance = phase("recording", n_steps)
    kept, runs = record(training, seeds, directory, advance, training_seed, first_seed)
    others = None
    if any(case.reference == "another run" for case in training.cases.values()):
        loop = training.start(training_seed + 1)
        path = directory / "other.zarr"
        with trajstore.Recorder(path, loop.model, loop.optimizer):
            other = train(loop, n_steps)
        others = other, trajstore.open_run(path)
    advance = phase("analysing", seeds * len(training.cases))
    return {
        name: measure_case(training, case, kept, runs[name], others, advance)
        for name, case in training.cases.items()
    }


@contextmanager
def phases(console: Console) -> Iterator[Callable[[str, str, int], Callable[[], None]]]:
    """Show the progress of several phases, one after the other."""
    with Progress(console=console, transient=True) as progress:

        def phase(name: str, title: str, total: int) -> Callable[[], None]:
            task = progress.add_task(f"{name}: {title}", total=total)
            return lambda: progress.advance(task)

        yield phase


def main(
    *,
    only: tuple[Literal[tuple(TRAININGS)], ...] = (),  # type: ignore[valid-type]
    seeds: int = 12,
    training_seed: int = 0,
    out: Path = RESULTS / "calibration.json",
    compare: Path | None = None,
) -> None:
    """Measure, print and save the results.

    Parameters
    ----------
    only : str
        Names of the trainings to measure; all by default.
    seeds : int
        Number of recorders of each kind.
    training_seed : int
        Seed of the training. Errors that recorders share, such as those of rounding, or of the
        turns of its path, are a single draw in one training: others tell whether they are honest.
    out : Path
        JSON file to write; results of other trainings in the file are kept.
    compare : Path, optional
        JSON file of older results to compare with.
    """
    torch.set_num_threads(1)
    console = Console(width=170)
    measured: dict[str, Any] = {}
    for name in only or TRAININGS:
        with (
            tempfile.TemporaryDirectory() as directory,
            phases(Console(stderr=True)) as phase,
        ):
            cases = measure(
                TRAININGS[name],
                seeds,
                Path(directory),
                lambda *a, n=name: phase(n, *a),
                training_seed,
            )
        found = {f"{name}, {case}" if case else name: r for case, r in cases.items()}
        for title, result in found.items():
            console.print(table_of(title, result))
        measured |= found
        kept = json.loads(out.read_text()) if out.exists() else {}
        save_results(kept | measured, out)
    for line in outside(measured):
        console.print(line, markup=False)
    if compare is not None:
        console.print(comparison(measured, json.loads(compare.read_text())))


if __name__ == "__main__":
    tyro.cli(main)
