"""Record a training run, and resume it after an interruption."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any, Final
from warnings import warn

import torch
from torch import nn
from torch.optim import Optimizer

from train.loop import train
from train.observer import Log, Track
from train.settings import Training
from train.workloads.catalogue import WORKLOADS
from trajstore.format.attrs import (
    DATA,
    ENVIRONMENT_SETTINGS,
    TRAINING,
    training_settings,
)
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder

MIN_CHECKPOINT_SECONDS: Final = 10.0
"""Shortest time between two checkpoints; writing one can take longer than an epoch."""


def record(
    training: Training,
    out: Path,
    track: Track = iter,
    *,
    branch_at: Sequence[int] = (),
    **options: Any,
) -> nn.Module:
    """Train and record, and keep checkpoints for branches at the starts of given epochs."""
    check_branch_epochs(branch_at, training)
    remaining = set(branch_at)

    def save(state: dict[str, Any], recorder: Log) -> None:
        epoch = state["epoch"]
        if epoch not in remaining:
            return
        assert isinstance(recorder, Recorder)
        recorder.snapshot(f"epoch-{epoch}")
        path = branch_checkpoint_path(out, epoch)
        path.parent.mkdir(exist_ok=True)
        write_checkpoint(state | {"recorder": recorder.state_dict()}, path)
        remaining.remove(epoch)

    model = train(training, _recording(out, training, options), track, save=save)
    if remaining:
        warn(
            f"Training ended before the epochs {sorted(remaining)}; no run can branch off "
            "at these epochs.",
            stacklevel=2,
        )
    return model


def check_branch_epochs(epochs: Sequence[int], training: Training) -> None:
    """Refuse epochs at which no branch checkpoint can be kept."""
    outside = [epoch for epoch in epochs if not 0 < epoch < training.epochs]
    if outside:
        raise ValueError(
            f"branch_at: expected epochs from 1 to {training.epochs - 1}, got {outside}; "
            "a branch at epoch 0 needs no checkpoint."
        )


def branch_checkpoint_path(out: Path, epoch: int) -> Path:
    """Return the path of the checkpoint from which branches at an epoch start."""
    return branches_directory(out) / f"epoch-{epoch}.pt"


def branches_directory(out: Path) -> Path:
    """Return the directory of a run's branch checkpoints and, by default, its branches."""
    return out.with_suffix(".branches")


def record_resumably(
    training: Training,
    out: Path,
    track: Track = iter,
    *,
    checkpoint_seconds: float = MIN_CHECKPOINT_SECONDS,
    **options: Any,
) -> nn.Module:
    """Train and record, resuming from the last checkpoint if there is one."""
    if is_complete(training, out):
        raise FileExistsError(f"{out} is complete already; choose a new path.")
    path = checkpoint_path(out)
    start: dict[str, Any] | None = None
    resume: dict[str, Any] = {}
    if path.exists():
        start = torch.load(path, map_location="cpu", weights_only=True)
        assert start is not None
        _check_same_settings(start["attrs"], training, path)
        resume = {"resume": start["recorder"]}
    elif out.exists():
        # The run was interrupted before its first checkpoint.
        resume = {"resume": True, "step": 0}
    last_checkpoint = monotonic()

    def save(state: dict[str, Any], recorder: Log) -> None:
        nonlocal last_checkpoint
        assert isinstance(recorder, Recorder)
        if monotonic() - last_checkpoint < checkpoint_seconds:
            return
        write_checkpoint(
            state | {"recorder": recorder.state_dict(), "attrs": attrs(training)}, path
        )
        last_checkpoint = monotonic()

    observe = _recording(out, training, options | resume)
    model = train(training, observe, track, start=start, save=save)
    path.unlink(missing_ok=True)
    return model


def _recording(
    out: Path, training: Training, options: Mapping[str, Any]
) -> Callable[..., Recorder]:
    """Return a function that makes the recorder of a training run, given its epochs."""

    def observe(
        model: nn.Module,
        optimizer: Optimizer,
        *,
        steps_per_epoch: int,
        total_steps: int,
    ) -> Recorder:
        # Branches and figures need an anchor at the start of every epoch, also of short ones.
        windows: dict[str, Any] = {}
        if not training.full_batch:
            windows["reference_every"] = steps_per_epoch
        return Recorder(
            out,
            model,
            optimizer,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
            attrs=attrs(training),
            samples=n_samples(training),
            **{**windows, **options},
        )

    return observe


def is_complete(training: Training, out: Path) -> bool:
    """Return whether a store holds a complete recording of the given training run."""
    if not (out / "zarr.json").exists():
        return False
    run = open_run(out)
    _check_same_settings(run.attrs, training, out)
    return run.status == "complete"


def _check_same_settings(
    stored_attrs: Mapping[str, Any], training: Training, path: Path
) -> None:
    """Refuse a store or checkpoint of a run with other settings."""
    recorded = training_settings(stored_attrs) or {"workload": None}
    differences = [
        f"{name} {recorded[name]!r} instead of {value!r}"
        for name, value in asdict(training).items()
        if name in recorded
        and name not in ENVIRONMENT_SETTINGS
        and recorded[name] != value
    ]
    if differences:
        raise ValueError(
            f"{path} belongs to another training run: {', '.join(differences)}. Choose "
            "another path, or delete this one to start over."
        )


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, then replace the previous checkpoint with it."""
    partial_path = path.with_suffix(".partial")
    torch.save(dict(state), partial_path)
    partial_path.replace(path)


def checkpoint_path(out: Path) -> Path:
    """Return the path of a recording's checkpoint."""
    return out.with_suffix(".checkpoint")


def n_samples(training: Training) -> int:
    """Return the number of example indices recorded with each step; 0 for none."""
    records_samples = training.record_samples and not training.full_batch
    return training.batch_size if records_samples else 0


def attrs(training: Training) -> dict[str, Any]:
    """Return a store's attrs: training settings, a note on the data, and other facts."""
    workload = WORKLOADS[training.workload]
    note, facts = workload.notes[training.data], workload.facts(training)
    return {TRAINING: asdict(training), DATA: note, **facts}
