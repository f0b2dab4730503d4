"""Measure how well plans extrapolate from a recorded run of the same network.

Three trainings that no constant of plans was fitted to are recorded once with default options. From
these errors, plans predict those of recordings with other options, of the same networks with other
initial weights and batches. Takes about three minutes.
"""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask
import torch
import tyro
from calibration_errors import train as train_and_keep
from calibration_trainings import TRAININGS, Training
from planning_tables import HELD_OUT
from rich.console import Console
from saving import RESULTS, save_results

import analyzers
import trajstore
from trajstore.planning.estimate import plan_recording
from trajstore.planning.recorded import optimizer_of, recorded_errors

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "default options": {},
    "`sketch_bits=16384`": {"sketch_bits": 1 << 14},
    "`sketch_bits=131072`": {"sketch_bits": 1 << 17},
    "`sketch_bits=262144`": {"sketch_bits": 1 << 18},
    "`basis=1`": {"basis": 1},
}
"""Options of the recordings whose errors are predicted."""


def record(
    training: Training,
    seed: int,
    options: Mapping[str, Mapping[str, Any]],
    directory: Path,
) -> dict[str, trajstore.Run]:
    """Train once under several recorders, and store the geometry of every run."""
    loop, paths = training.start(seed), {}
    with ExitStack() as stack:
        for i, (name, chosen) in enumerate(options.items()):
            paths[name] = directory / f"{seed}-{i}.zarr"
            recorder = trajstore.Recorder(
                paths[name],
                loop.model,
                loop.optimizer,
                steps_per_epoch=training.steps_per_epoch,
                total_steps=training.total_steps,
                seed=seed,
                **chosen,
            )
            stack.enter_context(recorder)
        train_and_keep(loop, training.total_steps)
    runs = {name: trajstore.open_run(path) for name, path in paths.items()}
    for run in runs.values():
        analyzers.store_geometry(run)
    return runs


def compare(training: Training, directory: Path) -> dict[str, dict[str, float]]:
    """Return planned and measured errors of every recording."""
    default = {"": OPTIONS["default options"]}
    [trial] = record(training, 0, default, directory).values()
    like = recorded_errors(trial, rate=training.rate)
    epoch, results = training.steps_per_epoch, {}
    for name, run in record(training, 1, OPTIONS, directory).items():
        plan = plan_recording(
            run.layout,
            n_steps=run.n_steps,
            steps_per_epoch=epoch,
            rate=training.rate,
            optimizer=optimizer_of(run),
            like=like,
            **OPTIONS[name],
        )
        measured = recorded_errors(run, rate=training.rate)
        assert measured.mean is not None
        results[name] = {
            "step": measured.step,
            "planned step": plan.stderr().typical,
            "mean": measured.mean,
            "planned mean": plan.stderr(mean_of=epoch).typical,
        }
    return results


def main(*, out: Path = RESULTS / "planning_like.json") -> None:
    """Measure, print and save the results.

    Parameters
    ----------
    out : Path
        JSON file to write.
    """
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with dask.config.set(scheduler="synchronous"):
        for name in HELD_OUT:
            with tempfile.TemporaryDirectory() as directory:
                results[name] = compare(TRAININGS[name], Path(directory))
    save_results(results, out)
    Console().print(results)


if __name__ == "__main__":
    tyro.cli(main)
