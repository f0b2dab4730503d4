"""Record a training so that it can be taken up again where it was interrupted."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final

import torch
from torch import nn

from train.loop import train
from train.observer import Log, Track
from train.training import Training
from train.workloads import WORKLOADS
from trajstore.reader import open_run
from trajstore.recorder import Recorder

IMMATERIAL: Final = ("data_dir", "device", "num_workers")
"""Settings that may change when a run is taken up again."""

CHECKPOINT_SECONDS: Final = 10.0
"""Epochs can be as short as a step, and a checkpoint takes longer than that."""


def record(
    training: Training, out: Path, track: Track = iter, **options: Any
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
    **options : object
        Of `trajstore.Recorder`.

    Returns
    -------
    torch.nn.Module
        The model.
    """
    return train(
        training, partial(Recorder, out, attrs=attrs(training), **options), track
    )


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
        state |= {"recorder": recorder.state_dict(), "attrs": attrs(training)}
        partial_path = path.with_suffix(".partial")
        torch.save(state, partial_path)
        partial_path.replace(path)
        last = monotonic()

    observe = partial(Recorder, out, attrs=attrs(training), **resume, **options)
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


def checkpoint_path(out: Path) -> Path:
    """Return where the checkpoint of a recording lies."""
    return out.with_suffix(".checkpoint")


def attrs(training: Training) -> dict[str, Any]:
    """Return what a store keeps: how to repeat a training, and what its data are."""
    workload = WORKLOADS[training.workload]
    note, facts = workload.notes[training.data], workload.facts(training)
    return {"training": asdict(training), "data": note, **facts}
