"""Begin anew from the midst of a recorded training, with other learning rates.

A branch starts where an epoch of its parent did: with the same parameters and buffers, the
same state of the optimizer, and the same random stream, so that it sees the same data in the
same order. All that differs is a factor of the learning rate. With a factor of 1 it takes
the steps of its parent again, bit for bit where the machine computes them alike.
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
from train.protocols.record import attrs, branch_point, branches_directory
from train.settings import Training
from trajstore.reading.run import Run
from trajstore.reading.target import find_target
from trajstore.recording.recorder import Recorder
from trajstore.store.location import name_of

BRANCH: Final = "branch"
"""Entry of ``run.attrs`` that tells a branch from other runs."""

WITHOUT_CHECKPOINT: Final = "a new optimizer, and the data in the order of epoch 0"
"""What a branch begins with besides parameters, if nothing else is known."""


class Start(NamedTuple):
    """What a branch begins with.

    Attributes
    ----------
    state : dict
        What `train.loop.train` takes as ``start``.
    note : str
        What it is.
    pending : dict from str to float
        Scalars that belong to the first step.
    parameters : dict from str to numpy.ndarray, or None
        Those that the store holds, where there is no checkpoint.
    """

    state: dict[str, Any]
    note: str
    pending: dict[str, float]
    parameters: dict[str, npt.NDArray[np.float32]] | None = None


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
    """Train and record from the start of an epoch of a run.

    Parameters
    ----------
    run : trajstore.Run
        The parent, recorded by `train.protocols.record.record`.
    epoch : int
        The epoch; one that was given to it as ``branch_at``, or 0. Without a checkpoint
        the store's own snapshot or reference is taken if the model has no buffers, with
        a new optimizer and the data in the order of epoch 0.
    lr_scale : float
        Factor of the learning rate, at every step of the schedule.
    out : pathlib.Path
        The store, new. ``run.attrs["branch"]`` says where it comes from; its steps and
        epochs are counted from 0.
    track : callable, default: iter
        Shows the progress over epochs.
    epochs : int, optional
        How many to train for. Default: those that the parent had left. A smaller
        learning rate needs more of them to go equally far.
    **changes : object
        Settings of the training that may differ: ``device``, ``data_dir``,
        ``num_workers``.

    Returns
    -------
    torch.nn.Module
        The model.

    Raises
    ------
    KeyError
        If there is nothing of that epoch to begin with; says what there is.
    ValueError
        If the scale is not a positive number; if the run is a branch, or says nothing of
        its training; if the parent's schedule ends before the branch; or if there is no
        checkpoint and the model has buffers.
    FileExistsError
        If there is something at `out`.
    """
    training = replace(branch_training(run, epoch, lr_scale, epochs), **changes)
    start = find_start(run, epoch)
    spec = run.spec
    assert spec.steps_per_epoch is not None
    first = epoch * spec.steps_per_epoch
    from_where = {
        "parent": name_of(run.location),
        "parent_created": run.stored.document.created,
        "epoch": epoch,
        "step": first,
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
            total_steps=total_steps - first,
            reference_every=spec.reference_every,
            sketch_bits=spec.sketch_bits,
            basis=spec.basis,
            probes=spec.probes,
            exact=spec.exact,
            seed=spec.seed,
            updates="update" in run.measurements,
            attrs=attrs(training) | {BRANCH: from_where},
        ) as recorder:
            recorder.log(**start.pending)
            yield recorder

    return train(training, observe, track, start=start.state)


def branch_path(run: Run, epoch: int, lr_scale: float, directory: Path | None) -> Path:
    """Return where a branch is recorded: beside its parent, or in a directory."""
    directory = directory or branches_directory(Path(run.location))
    return directory / f"epoch-{epoch}-lr-{lr_scale:g}.zarr"


def branch_training(
    run: Run, epoch: int, lr_scale: float, epochs: int | None = None
) -> Training:
    """Return how a branch is trained: its settings count epochs as the parent's do.

    Parameters
    ----------
    run : trajstore.Run
        The parent.
    epoch, lr_scale, epochs
        As `branch` takes them.

    Returns
    -------
    Training
        Ends with the branch.

    Raises
    ------
    KeyError
        If the parent has no such epoch.
    ValueError
        As `branch`.
    """
    if not 0 < lr_scale < math.inf:
        raise ValueError(f"lr_scale: expected a positive number, got {lr_scale}.")
    if BRANCH in run.attrs:
        raise ValueError(
            f"{run.location} is a branch itself, of {run.attrs[BRANCH]['parent']}; begin "
            "another one there."
        )
    if "training" not in run.attrs or run.spec.steps_per_epoch is None:
        raise ValueError(
            f"{run.location} does not say how it was trained; only runs of traj-train "
            "can be trained again from one of their epochs."
        )
    parent = Training(**run.attrs["training"])
    per_epoch = run.spec.steps_per_epoch
    planned = parent.epochs * per_epoch
    n_epochs = -(-min(planned, parent.max_steps or planned) // per_epoch)
    if not 0 <= epoch < n_epochs:
        raise KeyError(
            f"No epoch {epoch} in {run.location}, which was to have {n_epochs}. "
            f"{_offer(run)}"
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
            f"{parent.epochs} epochs; ask for at most {parent.epochs - epoch} of them."
        )
    return replace(scaled, epochs=max(parent.epochs, stop), max_steps=stop * per_epoch)


def find_start(run: Run, epoch: int) -> Start:
    """Find what a branch begins with.

    Parameters
    ----------
    run : trajstore.Run
        The parent.
    epoch : int
        At whose start.

    Returns
    -------
    Start
        From a checkpoint, the beginning, a snapshot or a stored reference, the first of
        these that there is.

    Raises
    ------
    KeyError
        If there is none; says of which epochs there are.
    ValueError
        If the checkpoint is of another run.
    """
    path = branch_point(Path(run.location), epoch)
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        recorder = state.pop("recorder")
        if recorder["created"] != run.stored.document.created:
            raise ValueError(
                f"{path} is of another run that was at {run.location} before; delete it, "
                f"and record the run again with --branch-at {epoch}."
            )
        return Start(state, "a checkpoint", recorder["position"]["pending"])
    if epoch == 0:
        return Start({"epoch": 0}, "the beginning, drawn from the same seed", {})
    name = f"epoch-{epoch}"
    if name not in run.snapshots and epoch not in run.stored.epoch_windows:
        raise KeyError(
            f"No checkpoint of epoch {epoch} beside {run.location}. {_offer(run)}"
        )
    point = find_target(run, name if name in run.snapshots else epoch)
    parameters = run.layout.unflatten(point.read(slice(0, run.layout.size)))
    note = f"{point.note}; {WITHOUT_CHECKPOINT}"
    return Start({"epoch": epoch}, note, {}, dict(parameters))


def _offer(run: Run) -> str:
    """Say of which epochs there is what."""
    directory = branches_directory(Path(run.location))
    kept = sorted(
        int(path.stem.removeprefix("epoch-")) for path in directory.glob("epoch-*.pt")
    )
    return (
        f"There are checkpoints of the epochs {kept}, and epoch 0 needs none; others are "
        "kept by traj-train run NAME --branch-at EPOCH."
    )


@torch.no_grad()
def _set_parameters(
    model: nn.Module,
    values: dict[str, npt.NDArray[np.float32]],
    run: Run,
    epoch: int,
) -> None:
    """Give a model without buffers the parameters that a store holds."""
    if buffers := [name for name, _ in model.named_buffers()]:
        raise ValueError(
            f"The model has buffers, such as {buffers[0]}, which no store holds, and there "
            f"is no checkpoint of epoch {epoch} beside {run.location}. {_offer(run)}"
        )
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.from_numpy(np.array(values[name])))
