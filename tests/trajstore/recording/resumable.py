"""A small training run that is recorded, stopped and resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import nn

import analyzers
from tests.trajstore.recording.regression import leave
from trajstore.reading.run import Run
from trajstore.recording.recorder import Recorder

SPE, N_STEPS = 6, 36
SMALL: dict[str, Any] = {"sketch_bits": 64, "probes": 16}


class Training:
    """A small training run whose complete state is in its checkpoint."""

    def __init__(self, *, width: int = 30, groups: int = 1, adam: bool = False) -> None:
        torch.manual_seed(2)
        self.model = nn.Sequential(nn.Linear(40, width), nn.Tanh(), nn.Linear(width, 3))
        parameters = list(self.model.parameters())
        parts = [parameters[i::groups] for i in range(groups)]
        groups_of = [{"params": part} for part in parts]
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
            groups_of, lr=0.05, momentum=0.9
        )
        if adam:
            self.optimizer = torch.optim.AdamW(groups_of, lr=0.01)

    def run(
        self,
        recorder: Recorder,
        steps: range,
        each: Callable[[int, Recorder], None] = lambda *_: None,
    ) -> None:
        for step in steps:
            each(step, recorder)
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(16, 40, generator=generator)
            self.optimizer.zero_grad()
            loss = (self.model(inputs) - inputs[:, :3].sin()).square().mean()
            loss.backward()
            recorder.log(loss=loss)
            self.optimizer.step()

    def checkpoint(self, recorder: Recorder) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "recorder": recorder.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def record(
    path: Path,
    steps: range = range(N_STEPS),
    save: Path | None = None,
    each: Callable[[int, Recorder], None] = lambda *_: None,
    *,
    adam: bool = False,
    **options: Any,
) -> None:
    """Record several steps, and save a checkpoint at the end if `save` is given."""
    training = Training(adam=adam)
    options = SMALL | {"steps_per_epoch": SPE} | options
    resume = options.get("resume")
    if isinstance(resume, Path):
        state = torch.load(resume, weights_only=True)
        training.restore(state)
        options["resume"] = state["recorder"] if "step" not in options else True
    recorder = Recorder(path, training.model, training.optimizer, **options)
    training.run(recorder, steps, each)
    if save is None:
        recorder.close()
        return
    torch.save(training.checkpoint(recorder), save)
    # The checkpoint does not contain the steps after it.
    training.run(recorder, range(steps.stop, steps.stop + 5), each)
    recorder.flush()
    leave(recorder)


def contents(run: Run) -> dict[str, Any]:
    """Read every array of a store, except times of day."""
    members = zarr.open_group(run.location, mode="r", use_consolidated=True).members(
        None
    )
    arrays = {
        name: np.asarray(array[...])
        for name, array in members
        if isinstance(array, zarr.Array) and array.basename != "scalars"
    }
    for name in run.metrics:
        if name != "wall_time":
            arrays[f"scalars/{name}"] = run.steps[name].values
    for name, snapshot in run.stored.document.snapshots.items():
        arrays[f"snapshots/{name}"] = np.asarray(run.stored.array(snapshot.array)[...])
    return arrays


def assert_same_bits(found: Run, expected: Run) -> None:
    ours, theirs = contents(found), contents(expected)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].shape == array.shape, name
        assert ours[name].tobytes() == array.tobytes(), name


def assert_same_analysis(found: Run, expected: Run) -> None:
    for reference in ("final", 3):
        ours, theirs = (
            analyzers.path_geometry(run, reference=reference, layers=True).compute()
            for run in (found, expected)
        )
        for name, values in ours.items():
            assert values.values.tobytes() == theirs[name].values.tobytes(), name


def attempt(path: Path, training: Training, **options: Any) -> None:
    options = SMALL | {"steps_per_epoch": SPE} | options
    Recorder(path, training.model, training.optimizer, **options).close()
