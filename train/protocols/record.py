"""Record a training so that it can be taken up again where it was interrupted."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final
from warnings import warn

import torch
from torch import nn

from train.loop import train
from train.observer import Log, Track
from train.settings import Training
from train.workloads.catalogue import WORKLOADS
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder

IMMATERIAL: Final = ("data_dir", "device", "num_workers")
"""Settings that may change when a run is taken up again."""

CHECKPOINT_SECONDS: Final = 10.0
"""Epochs can be as short as a step, and a checkpoint takes longer than that."""


def record(
    training: Training,
    out: Path,
    track: Track = iter,
    *,
    branch_at: Sequence[int] = (),
    **options: Any,
) -> nn.Module:
    """Train and record.

    Parameters
    ----------
    training : Training
        What to do; the store keeps it, as ``run.attrs["training"]``.
    out : pathlib.Path
        The store, new.
    track : callable, default: iter
        Shows the progress over epochs.
    branch_at : sequence of int, default: ()
        Epochs at whose starts `train.protocols.branch` may let other runs begin: each leaves a
        snapshot ``epoch-5`` in the store, and a checkpoint `branch_point` beside it.
    **options : object
        Of `trajstore.Recorder`.

    Returns
    -------
    torch.nn.Module
        The model.

    Raises
    ------
    ValueError
        If no epoch in the midst of the training has such a number.

    Warns
    -----
    UserWarning
        If the training ended before such an epoch, because of ``max_steps``.
    """
    check_branch_epochs(branch_at, training)
    waiting = set(branch_at)

    def save(state: dict[str, Any], recorder: Log) -> None:
        epoch = state["epoch"]
        if epoch not in waiting:
            return
        assert isinstance(recorder, Recorder)
        recorder.snapshot(f"epoch-{epoch}")
        path = branch_point(out, epoch)
        path.parent.mkdir(exist_ok=True)
        write_checkpoint(state | {"recorder": recorder.state_dict()}, path)
        waiting.remove(epoch)

    observe = partial(
        Recorder, out, attrs=attrs(training), samples=n_samples(training), **options
    )
    model = train(training, observe, track, save=save)
    if waiting:
        warn(
            f"The training ended before the epochs {sorted(waiting)}; nothing can branch "
            "there.",
            stacklevel=2,
        )
    return model


def check_branch_epochs(epochs: Sequence[int], training: Training) -> None:
    """Refuse to keep a checkpoint where there is none to keep.

    Parameters
    ----------
    epochs : sequence of int
        At whose starts checkpoints are asked for.
    training : Training
        What is trained.

    Raises
    ------
    ValueError
        If one is not in the midst of the training.
    """
    outside = [epoch for epoch in epochs if not 0 < epoch < training.epochs]
    if outside:
        raise ValueError(
            f"branch_at: expected epochs from 1 to {training.epochs - 1}, got {outside}; "
            "a branch at epoch 0 needs no checkpoint."
        )


def branch_point(out: Path, epoch: int) -> Path:
    """Return where the checkpoint lies that branches of an epoch start from."""
    return branches_directory(out) / f"epoch-{epoch}.pt"


def branches_directory(out: Path) -> Path:
    """Return where a run keeps its checkpoints for branches, and these by default."""
    return out.with_suffix(".branches")


def record_resumably(
    training: Training,
    out: Path,
    track: Track = iter,
    *,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    **options: Any,
) -> nn.Module:
    """Train and record, from the last checkpoint if there is one.

    Checkpoints are written beside the store, at ends of epochs; when the training is
    complete, the last one is removed.

    Parameters
    ----------
    training : Training
        What to do.
    out : pathlib.Path
        The store: new, or that of the same training, interrupted.
    track : callable, default: iter
        Shows the progress over epochs.
    checkpoint_seconds : float, default: 10.0
        Least time between two checkpoints; 0 for one after every epoch.
    **options : object
        Of `trajstore.Recorder`.

    Returns
    -------
    torch.nn.Module
        The model.

    Raises
    ------
    FileExistsError
        If the store is complete.
    ValueError
        If the store is of another training.
    """
    if is_complete(training, out):
        raise FileExistsError(f"{out} is complete already; choose a new path.")
    path = checkpoint_path(out)
    start: dict[str, Any] | None = None
    resume: dict[str, Any] = {}
    if path.exists():
        start = torch.load(path, map_location="cpu", weights_only=True)
        assert start is not None
        _check_same(start["attrs"], training, path)
        resume = {"resume": start["recorder"]}
    elif out.exists():
        # Interrupted before the first checkpoint.
        resume = {"resume": True, "step": 0}
    last = monotonic()

    def save(state: dict[str, Any], recorder: Log) -> None:
        nonlocal last
        assert isinstance(recorder, Recorder)
        if monotonic() - last < checkpoint_seconds:
            return
        write_checkpoint(
            state | {"recorder": recorder.state_dict(), "attrs": attrs(training)}, path
        )
        last = monotonic()

    observe = partial(
        Recorder,
        out,
        attrs=attrs(training),
        samples=n_samples(training),
        **resume,
        **options,
    )
    model = train(training, observe, track, start=start, save=save)
    path.unlink(missing_ok=True)
    return model


def is_complete(training: Training, out: Path) -> bool:
    """Return whether a store holds all of a training.

    Parameters
    ----------
    training : Training
        Which one.
    out : pathlib.Path
        The store; may be missing.

    Returns
    -------
    bool
        False also if it is missing or was interrupted.

    Raises
    ------
    ValueError
        If the store is of another training; says what differs.
    """
    if not (out / "zarr.json").exists():
        return False
    run = open_run(out)
    _check_same(run.attrs, training, out)
    return run.status == "complete"


def _check_same(found: Mapping[str, Any], training: Training, path: Path) -> None:
    """Refuse what belongs to a training with other settings."""
    theirs: dict[str, Any] = found.get("training", {"workload": None})
    differences = [
        f"{name} {theirs[name]!r} instead of {value!r}"
        for name, value in asdict(training).items()
        if name in theirs and name not in IMMATERIAL and theirs[name] != value
    ]
    if differences:
        raise ValueError(
            f"{path} is of another training: {', '.join(differences)}. Choose another "
            "place, or delete it to begin anew."
        )


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint; what was there stays until all of it is written."""
    partial_path = path.with_suffix(".partial")
    torch.save(dict(state), partial_path)
    partial_path.replace(path)


def checkpoint_path(out: Path) -> Path:
    """Return where the checkpoint of a recording lies."""
    return out.with_suffix(".checkpoint")


def n_samples(training: Training) -> int:
    """Return how many indices of examples belong to a step: none where all data do."""
    is_asked = training.record_samples and not training.full_batch
    return training.batch_size if is_asked else 0


def attrs(training: Training) -> dict[str, Any]:
    """Return what a store keeps: how to repeat a training, and what its data are."""
    workload = WORKLOADS[training.workload]
    note, facts = workload.notes[training.data], workload.facts(training)
    return {"training": asdict(training), "data": note, **facts}
