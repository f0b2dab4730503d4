"""Branch off a recorded run at an epoch with a different learning rate.

A branch starts from its parent's state at the start of an epoch: the same parameters,
buffers, optimizer state and random stream. It therefore sees the same data in the same
order. Only the learning rate differs, by a constant factor. With a factor of 1, the branch
repeats the steps of its parent, bit for bit on the same machine.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim import Optimizer

from train.loop import train
from train.observer import Log, Track
from train.protocols.record import (
    attrs,
    branch_checkpoint_path,
    branches_directory,
    n_samples,
)
from train.settings import Training
from trajstore.format.attrs import BRANCH, TRAINING, UPDATE, training_settings
from trajstore.reading.run import Run
from trajstore.reading.target import find_target
from trajstore.recording.recorder import Recorder
from trajstore.store.location import name_of

WITHOUT_CHECKPOINT: Final = "a new optimizer, and the data in the order of epoch 0"
"""Part of the note on a branch whose parameters are read from the store."""


class BranchStart(NamedTuple):
    """Initial state of a branch."""

    state: dict[str, Any]  # the `start` argument of `train.loop.train`
    note: str  # origin of the state, as the branch's store describes it
    pending: dict[str, float]  # scalars to log with the first step
    parameters: dict[str, npt.NDArray[np.float32]] | None = None
    """Parameters from the store, by name; None if the start is not read from the store."""


def branch(
    run: Run,
    epoch: int,
    lr_scale: float,
    out: Path,
    track: Track = iter,
    *,
    epochs: int | None = None,
    **changes: Any,
) -> nn.Module:
    """Train and record a branch from the start of an epoch of a run."""
    training = replace(branch_training(run, epoch, lr_scale, epochs), **changes)
    start = find_start(run, epoch)
    spec = run.spec
    assert spec.steps_per_epoch is not None
    first_step = epoch * spec.steps_per_epoch
    origin = {
        "parent": name_of(run.location),
        "parent_created": run.stored.document.created,
        "epoch": epoch,
        "step": first_step,
        "lr_scale": lr_scale,
        "start": start.note,
    }

    @contextmanager
    def observe(
        model: nn.Module,
        optimizer: Optimizer,
        *,
        steps_per_epoch: int,
        total_steps: int,
    ) -> Iterator[Log]:
        if start.parameters is not None:
            _set_parameters(model, start.parameters, run, epoch)
        with Recorder(
            out,
            model,
            optimizer,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps - first_step,
            reference_every=spec.reference_every,
            sketch_bits=spec.sketch_bits,
            basis=spec.basis,
            probes=spec.probes,
            exact=spec.exact,
            seed=spec.seed,
            updates=UPDATE in run.measurements,
            samples=n_samples(training),
            attrs=attrs(training) | {BRANCH: origin},
        ) as recorder:
            recorder.log(**start.pending)
            yield recorder

    return train(training, observe, track, start=start.state)


def branch_path(run: Run, epoch: int, lr_scale: float, directory: Path | None) -> Path:
    """Return the path of a branch in a directory, by default next to its parent."""
    directory = directory or branches_directory(Path(run.location))
    return directory / f"epoch-{epoch}-lr-{lr_scale:g}.zarr"


def branch_training(
    run: Run, epoch: int, lr_scale: float, epochs: int | None = None
) -> Training:
    """Return the settings of a branch; its epochs count from the start of the parent."""
    if not 0 < lr_scale < math.inf:
        raise ValueError(f"lr_scale: expected a positive number, got {lr_scale}.")
    if BRANCH in run.attrs:
        raise ValueError(
            f"{run.location} is itself a branch of {run.attrs[BRANCH]['parent']}; branch "
            "off that run instead."
        )
    if TRAINING not in run.attrs or run.spec.steps_per_epoch is None:
        raise ValueError(
            f"{run.location} does not say how it was trained; only runs of traj-train "
            "can be branched off."
        )
    parent = Training(**training_settings(run.attrs))
    per_epoch = run.spec.steps_per_epoch
    planned = parent.epochs * per_epoch
    n_epochs = -(-min(planned, parent.max_steps or planned) // per_epoch)
    if not 0 <= epoch < n_epochs:
        raise KeyError(
            f"There is no epoch {epoch} in {run.location}, which was planned to have "
            f"{n_epochs} epochs. {_available_epochs(run)}"
        )
    scaled = replace(parent, lr=parent.lr * lr_scale)
    if epochs is None:
        return scaled
    if epochs < 1:
        raise ValueError(f"epochs: expected at least 1, got {epochs}.")
    stop = epoch + epochs
    if stop > parent.epochs and parent.schedule != "constant":
        raise ValueError(
            f"The {parent.schedule!r} schedule of {run.location} ends after "
            f"{parent.epochs} epochs; choose at most {parent.epochs - epoch} epochs."
        )
    return replace(scaled, epochs=max(parent.epochs, stop), max_steps=stop * per_epoch)


def find_start(run: Run, epoch: int) -> BranchStart:
    """Find the state from which a branch at an epoch starts."""
    # In order of preference: a checkpoint, the beginning (epoch 0), a snapshot, an anchor.
    path = branch_checkpoint_path(Path(run.location), epoch)
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        recorder = state.pop("recorder")
        if recorder["created"] != run.stored.document.created:
            raise ValueError(
                f"{path} belongs to another run that was at {run.location} before; delete "
                f"it, and record the run again with --branch-at {epoch}."
            )
        return BranchStart(state, "a checkpoint", recorder["position"]["pending"])
    if epoch == 0:
        return BranchStart({"epoch": 0}, "the beginning, drawn from the same seed", {})
    name = f"epoch-{epoch}"
    if name not in run.snapshots and epoch not in run.stored.epoch_windows:
        raise KeyError(
            f"There is no checkpoint of epoch {epoch} next to {run.location}. "
            f"{_available_epochs(run)}"
        )
    point = find_target(run, name if name in run.snapshots else epoch)
    parameters = run.layout.unflatten(point.read(slice(0, run.layout.size)))
    note = f"{point.note}; {WITHOUT_CHECKPOINT}"
    return BranchStart({"epoch": epoch}, note, {}, dict(parameters))


def _available_epochs(run: Run) -> str:
    """Return a sentence that names the epochs with checkpoints."""
    directory = branches_directory(Path(run.location))
    kept = sorted(
        int(path.stem.removeprefix("epoch-")) for path in directory.glob("epoch-*.pt")
    )
    return (
        f"There are checkpoints of the epochs {kept}, and epoch 0 needs no checkpoint; "
        "record others with traj-train run NAME --branch-at EPOCH."
    )


@torch.no_grad()
def _set_parameters(
    model: nn.Module,
    values: dict[str, npt.NDArray[np.float32]],
    run: Run,
    epoch: int,
) -> None:
    """Copy parameters from a store into a model, and refuse a model with buffers."""
    if buffers := [name for name, _ in model.named_buffers()]:
        raise ValueError(
            f"The model has buffers, such as {buffers[0]}, which stores do not hold, and "
            f"there is no checkpoint of epoch {epoch} next to {run.location}. "
            f"{_available_epochs(run)}"
        )
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.from_numpy(np.array(values[name])))
