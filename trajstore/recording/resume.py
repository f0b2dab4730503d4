"""Go on with a recording where a checkpoint left it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trajstore.format.arrays import KEYFRAME_EVERY, STEP, table_columns
from trajstore.format.run_spec import RunSpec, SchemaError
from trajstore.format.windows import Windows
from trajstore.recording.host_copies import to_numpy
from trajstore.store.writer import Writer
from trajstore.tracking.tracker import Tracker

MOVED: Final = 1e-3
"""Relative difference of squared distances beyond which parameters are others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a recording stands between two optimizer steps.

    Attributes
    ----------
    step : int
        The next optimizer step.
    epoch, epoch_start : int
        Its epoch, and the step with which that began.
    next_window : int
        The step with which the next window begins.
    wall_time : float
        Seconds since the recording began, without interruptions.
    pending : dict from str to float
        What was logged for the next step.
    samples : sequence of int
        The indices of examples that were logged for it. States of older versions have
        none.
    """

    step: int
    epoch: int = 0
    epoch_start: int = 0
    next_window: int = 0
    wall_time: float = 0.0
    pending: Mapping[str, float]
    samples: Sequence[int] = ()


def first_step(
    resume: Mapping[str, Any] | bool, step: int | None, state: dict[str, Any] | None
) -> int:
    """Return the next optimizer step of a recording.

    Parameters
    ----------
    resume : mapping or bool
        Whether one is to be resumed.
    step : int, optional
        As the user gave it.
    state : dict, optional
        The state to resume, as `check_state` returned it.

    Returns
    -------
    int
        0 where nothing is resumed.

    Raises
    ------
    ValueError
        If they contradict each other, or the step is not known.
    """
    if state is not None:
        found: int = state["position"]["step"]
        if step not in {None, found}:
            raise ValueError(
                f"`resume` is a state at step {found}, but `step` is {step}."
            )
        return found
    if not resume and step is not None:
        raise ValueError(f"`step` = {step} needs `resume=True`.")
    if resume and (step is None or step < 0):
        raise ValueError(
            "`resume=True` needs `step`, the number of optimizer steps that the restored "
            f"checkpoint has taken; got {step}."
        )
    return step or 0


def check_state(state: object) -> dict[str, Any]:
    """Return a state as `make_state` made it.

    Parameters
    ----------
    state : object
        Decoded from a checkpoint.

    Returns
    -------
    dict
        The same.

    Raises
    ------
    ValueError
        If it is something else.
    """
    keys = {
        *("created", "position", "groups", "previous_gradient"),
        *("snapshots", "measured"),
    }
    if not isinstance(state, dict) or not keys <= state.keys():
        found = sorted(state) if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            "`resume` must be True or what recorder.state_dict() returned, got "
            f"{found}. Save it in the checkpoint beside those of model and optimizer."
        )
    return state


def make_state(
    position: Position,
    writer: Writer,
    previous_gradient: Tensor,
    groups: list[list[str]],
) -> dict[str, Any]:
    """Describe what is needed to go on besides the store; for a checkpoint.

    Parameters
    ----------
    position : Position
        Where the recording stands.
    writer : Writer
        Of the store.
    previous_gradient : torch.Tensor
        The last gradient, float32 of shape ``(size,)``.
    groups : list of list of str
        Names of the parameters in each of the optimizer's groups.

    Returns
    -------
    dict
        Of numbers, strings and one tensor of the length of the parameters.
    """
    return {
        "created": writer.created,
        "position": {
            "step": position.step,
            "epoch": position.epoch,
            "epoch_start": position.epoch_start,
            "wall_time": position.wall_time,
            "pending": dict(position.pending),
            "samples": list(position.samples),
        },
        "snapshots": list(writer.snapshots),
        "measured": {name: t.n_rows for name, t in writer.measurements.items()},
        "groups": groups,
        "previous_gradient": previous_gradient.detach().cpu().clone(),
    }


def group_differences(before: list[list[str]], now: list[list[str]]) -> list[str]:
    """List how the groups of an optimizer differ from those of a checkpoint."""
    problems = []
    if len(before) != len(now):
        problems.append(f"parameter groups: {len(now)}, recorded with {len(before)}")
    for i, (old, new) in enumerate(zip(before, now, strict=False)):
        if missing := sorted(set(old) - set(new)):
            problems.append(f"parameter group {i}: lacks {missing}")
        if added := sorted(set(new) - set(old)):
            problems.append(f"parameter group {i}: has {added} in addition")
    return problems


class Restoration(NamedTuple):
    """What a tracker needs to go on in a window.

    Attributes
    ----------
    window : int
        Which window.
    keyframe : torch.Tensor
        float32, (size,): the reference last stored in full.
    codes : callable
        Returns codes and scales of the reference of a window.
    weights, probes, gradient_energies : torch.Tensor
        See `trajstore.tracking.tracker.Tracker.restore`.
    """

    window: int
    keyframe: Tensor
    codes: Callable[[int], tuple[Tensor, Tensor]]
    weights: Tensor
    probes: Tensor
    gradient_energies: Tensor


class Resumption(NamedTuple):
    """Where and with what a recording goes on.

    Attributes
    ----------
    position : Position
        Where.
    n_windows : int
        How many windows have begun.
    restoration : Restoration or None
        What the tracker needs; None before the first window.
    previous_gradient : torch.Tensor or None
        That of the step before, None if it is not known.
    expected_sq : float
        Squared distance to the reference that the last step led to; NaN if not known.
    scale : float
        What the distance's rounding is relative to.
    """

    position: Position
    n_windows: int = 0
    restoration: Restoration | None = None
    previous_gradient: Tensor | None = None
    expected_sq: float = math.nan
    scale: float = math.nan


NOWHERE: Final = Position(step=0, pending={})


def take_up(
    writer: Writer,
    *,
    spec: RunSpec,
    windows: Windows,
    step: int,
    state: Mapping[str, Any] | None,
) -> Resumption:
    """Rewind a store to a step, and find what is needed to go on from there.

    What the store lacks before that step becomes rows of NaN; they are counted in the
    store's ``resumes``.

    Parameters
    ----------
    writer : Writer
        Of the store; is committed.
    spec : RunSpec
        What is recorded.
    windows : Windows
        The schedule.
    step : int
        The next optimizer step.
    state : mapping or None
        What `make_state` returned, if it was kept.

    Returns
    -------
    Resumption
        For `restore`.
    """
    if state is not None:
        snapshots, measured = state["snapshots"], state["measured"]
    else:
        snapshots = [name for name, taken in writer.snapshots.items() if taken <= step]
        measured = _measured_before(writer, step)
    writer.rewind(step, snapshots=snapshots, measured=measured)
    n_found = writer.n_steps
    writer.note_resumption(step)
    position = (
        Position(**state["position"])
        if state is not None
        else _position_from_rows(writer, step)
    )
    _append_missing(writer, spec, position)
    writer.commit()
    found = Resumption(
        replace(position, next_window=step),
        writer.n_windows,
        _restoration(writer, spec) if writer.n_windows > 0 else None,
        state["previous_gradient"] if state is not None else None,
    )
    if not 0 < step == n_found:
        # After a gap, as at the beginning, nothing is known but the parameters.
        return found
    next_window = windows.next_start(step, position.epoch_start)
    expected_sq, scale = _expected_sq(writer, spec)
    return found._replace(
        position=replace(position, next_window=next_window),
        expected_sq=expected_sq,
        scale=scale,
    )


def without_vectors(found: Resumption) -> Resumption:
    """Leave out what is as long as the parameters, for ranks that are told of it."""
    restoration, gradient = found.restoration, found.previous_gradient
    if restoration is not None:
        restoration = restoration._replace(keyframe=NOTHING, codes=_no_codes)
    return found._replace(
        restoration=restoration,
        previous_gradient=None if gradient is None else NOTHING,
    )


NOTHING: Final = torch.empty(0)


def _no_codes(_window: int) -> tuple[Tensor, Tensor]:
    """Take the place of what reads codes where there is no store."""
    return NOTHING, NOTHING


def restore(tracker: Tracker, found: Resumption) -> str | None:
    """Bring a tracker to where a recording goes on.

    Parameters
    ----------
    tracker : Tracker
        Newly made; of divided parameters those of all ranks do this together.
    found : Resumption
        As `take_up` returned it.

    Returns
    -------
    str or None
        Why the parameters can hardly be those that the step before led to.
    """
    position = found.position
    if found.restoration is not None:
        tracker.restore(*found.restoration)
    if found.previous_gradient is not None:
        tracker.previous_gradient = found.previous_gradient
    elif position.step > 0:
        tracker.forget_previous_gradient()
    if not math.isfinite(found.expected_sq):
        return None
    found_sq = float(to_numpy([tracker.displacement_sq()])[0].sum())
    if abs(found_sq - found.expected_sq) <= MOVED * found.scale:
        return None
    return (
        f"The parameters are not those that step {position.step - 1} led to: their "
        f"distance to the last reference is {max(found_sq, 0) ** 0.5:.4g}, expected "
        f"{max(found.expected_sq, 0) ** 0.5:.4g}. Load the checkpoint of step "
        f"{position.step} into the model before the recorder is made."
    )


def _measured_before(writer: Writer, step: int) -> dict[str, int]:
    """Count the rows of measurements that were made before a step began."""
    return {
        name: int(
            np.searchsorted(
                writer.read(f"{table.group}/{STEP}", slice(0, table.n_rows)), step
            )
        )
        for name, table in writer.measurements.items()
    }


def _position_from_rows(writer: Writer, step: int) -> Position:
    """Read from the last row what no state says."""
    if writer.n_steps == 0:
        return Position(step=step, pending={})
    last = slice(writer.n_steps - 1, writer.n_steps)
    [epoch], [iteration] = writer.read("epoch", last), writer.read("iteration", last)
    return Position(
        step=step,
        epoch=int(epoch),
        epoch_start=last.start - int(iteration),
        wall_time=writer.steps.last_scalar("wall_time"),
        pending={},
    )


def _append_missing(writer: Writer, spec: RunSpec, position: Position) -> None:
    """Fill the steps between what the store holds and the position."""
    missing = np.arange(writer.n_steps, position.step)
    if len(missing) == 0:
        return
    if spec.steps_per_epoch is None:
        epochs = np.full_like(missing, position.epoch)
        iterations = missing - position.epoch_start
    else:
        epochs, iterations = np.divmod(missing, spec.steps_per_epoch)
    window = np.full_like(missing, max(writer.n_windows - 1, 0))
    writer.steps.append_missing(
        np.stack([epochs, iterations, window], 1).astype(np.int32)
    )


def _restoration(writer: Writer, spec: RunSpec) -> Restoration:
    """Read what a tracker needs to go on in the last window of the store."""
    window = writer.n_windows - 1
    keyframe = max(window - 1, 0) // KEYFRAME_EVERY

    def row(name: str, index: int) -> Tensor:
        return torch.from_numpy(writer.read(name, slice(index, index + 1))[0])

    def codes(index: int) -> tuple[Tensor, Tensor]:
        return row("references/codes", index), row("references/scales", index)

    [start] = writer.read("references/start", slice(window, window + 1))
    tables = writer.read("tables", slice(int(start), writer.n_steps))
    energies = tables[..., table_columns(spec)["grad_sq"].start]
    # Rows of steps that were not recorded say nothing of gradients.
    scalars = writer.read("scalars", slice(int(start), writer.n_steps))
    is_recorded = np.isfinite(scalars).any(1)
    return Restoration(
        window,
        row("references/keyframes", keyframe),
        codes,
        row("references/weights", window),
        row("references/probes", window),
        torch.from_numpy(energies[is_recorded]),
    )


def _expected_sq(writer: Writer, spec: RunSpec) -> tuple[float, float]:
    """Return the squared distance to the reference that the last step led to, and more.

    Returns
    -------
    expected_sq : float
        The squared distance.
    scale : float
        What its rounding is relative to.
    """
    last = slice(writer.n_steps - 1, writer.n_steps)
    table, columns = (
        writer.read("tables", last)[0].astype(np.float64),
        table_columns(spec),
    )
    before, update_sq, update = (
        float(table[:, columns[name].start].sum())
        for name in ("displacement_sq", "update_sq", "update_dot_displacement")
    )
    return before + 2 * update + update_sq, before + 2 * abs(update) + update_sq


def check_groups(state: Mapping[str, Any], groups: list[list[str]]) -> None:
    """Raise an error if an optimizer has other groups than when a state was made.

    Parameters
    ----------
    state : mapping
        As `make_state` returned it.
    groups : list of list of str
        Names of the parameters in each of the optimizer's groups.

    Raises
    ------
    SchemaError
        If they differ; lists how.
    """
    if problems := group_differences(state["groups"], groups):
        raise SchemaError(["The optimizer is not that of the checkpoint:", *problems])
