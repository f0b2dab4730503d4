"""Compare plans with recordings of trainings that no constant of plans was fitted to.

Every training is recorded with several numbers of signs and probes, and several window lengths, and
once more with other initial weights and batches. Plans from the first recording with default options
know the training run, plans from the last one a similar run, and plans without a run know neither.
Takes about ten minutes.
"""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask
import numpy as np
import torch
import tyro
from calibration_errors import exact_geometry
from calibration_errors import train as train_and_keep
from calibration_trainings import Training
from planning_trainings import NEW_TRAININGS
from rich.console import Console
from saving import RESULTS, save_results

import analyzers
import trajstore
from analyzers.geometry.other_errors import OtherErrors
from trajstore.planning.estimate import plan_recording
from trajstore.planning.recorded import optimizer_of, recorded_errors

DEFAULT = "default"


def options_of(training: Training) -> dict[str, dict[str, Any]]:
    """Return the options of the recordings whose errors are predicted."""
    every = training.steps_per_epoch
    return {
        DEFAULT: {},
        **{f"2^{k}": {"sketch_bits": 1 << k} for k in (17, 18, 19, 20)},
        "half": {"reference_every": every // 2},
        "double": {"reference_every": 2 * every},
        "p4096": {"probes": 4096},
    }


def record(
    training: Training,
    seed: int,
    options: Mapping[str, Mapping[str, Any]],
    directory: Path,
) -> dict[str, trajstore.Run]:
    """Train once under several recorders, and open their runs; recordings there are used again."""
    paths = {name: directory / f"{seed}-{name}.zarr" for name in options}
    if not all(path.exists() for path in paths.values()):
        directory.mkdir(parents=True, exist_ok=True)
        loop = training.start(seed)
        with ExitStack() as stack:
            for name, chosen in options.items():
                recorder = trajstore.Recorder(
                    paths[name],
                    loop.model,
                    loop.optimizer,
                    steps_per_epoch=training.steps_per_epoch,
                    total_steps=training.total_steps,
                    seed=100 * seed + 7,
                    **chosen,
                )
                stack.enter_context(recorder)
            kept = train_and_keep(loop, training.total_steps)
        exact = exact_geometry(kept, kept.iterates[-1], 0.0)["gamma"][:, 0]
        np.save(directory / f"{seed}-gamma.npy", exact)
    return {name: trajstore.open_run(path) for name, path in paths.items()}


def true_error(run: trajstore.Run, exact: Any, every: int) -> float:
    """Return the rms error of gamma in a step, mid-run."""
    gamma = analyzers.path_geometry(run).gamma.compute().values
    middle = slice(every, len(exact) - every)
    return float(np.sqrt(np.square(gamma - exact)[middle].mean()))


def compare(training: Training, directory: Path) -> dict[str, Any]:
    """Return planned and measured errors of every recording."""
    every, options = training.steps_per_epoch, options_of(training)
    runs = record(training, 0, options, directory)
    exact = np.load(directory / "0-gamma.npy")
    [other] = record(training, 1, {DEFAULT: {}}, directory).values()
    likes = {
        "same": recorded_errors(runs[DEFAULT], rate=training.rate),
        "other": recorded_errors(other, rate=training.rate),
        "none": None,
    }
    results: dict[str, Any] = {
        "parameters": other.layout.n_params,
        "optimizer": optimizer_of(other),
        "rate": training.rate,
    }
    for name, run in runs.items():
        measured = OtherErrors(run).of(run.spec)
        results[name] = {
            "step": measured.step,
            "mean": measured.mean,
            "true step": true_error(run, exact, every),
        }
        for title, like in likes.items():
            plan = plan_recording(
                run.layout,
                n_steps=run.n_steps,
                steps_per_epoch=every,
                rate=training.rate,
                optimizer=optimizer_of(run),
                like=like,
                **options[name],
            )
            errors = {
                "step": plan.stderr(),
                "mean": plan.stderr(mean_of=every),
            }
            results[name][title] = {part: list(e) for part, e in errors.items()}
    return results


def main(
    *, keep: Path | None = None, out: Path = RESULTS / "planning_like.json"
) -> None:
    """Measure, print and save the results.

    Parameters
    ----------
    keep : Path, optional
        Directory of recordings, which are used again. Default: a temporary one.
    out : Path
        JSON file to write.
    """
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with dask.config.set(scheduler="synchronous"), ExitStack() as stack:
        if keep is None:
            keep = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, training in NEW_TRAININGS.items():
            results[name] = compare(training, keep / name.replace(" ", "-"))
            Console().print({name: results[name]})
            save_results(results, out)


if __name__ == "__main__":
    tyro.cli(main)
