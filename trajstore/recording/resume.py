"""Resume a recording at the step of a checkpoint."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trajstore.format.arrays import KEYFRAME_EVERY, STEP, table_columns
from trajstore.format.layout import BLOCK
from trajstore.format.resume_state import state_problems
from trajstore.format.run_spec import RunSpec, SchemaError
from trajstore.format.window_length import begins_window
from trajstore.format.windows import Windows
from trajstore.recording.host_copies import to_numpy
from trajstore.sketch.deltas import n_codes
from trajstore.store.location import locate
from trajstore.store.opening import open_checked
from trajstore.store.writer import Writer
from trajstore.tracking.tracker import Tracker

RESUME_RTOL: Final = 1e-3
"""Largest relative error of the squared distance between restored parameters and anchor."""

EMPTY_TENSOR: Final = torch.empty(0, dtype=torch.float32)


@dataclass(slots=True, kw_only=True)
class Position:
    """Position of a recording between two optimizer steps."""

    step: int = 0
    """Number of the next optimizer step."""
    epoch: int = 0
    epoch_start: int = 0
    """First step of the epoch."""
    next_window: int = 0
    """First step of the next window."""
    window_start: int = 0
    """First step of the last window."""
    windows_from: int = 0
    """First step of the last epoch that was started by hand and began a window, or 0."""
    n_windows: int = 0
    """Number of windows that have begun."""
    wall_time: float = 0.0
    """Seconds since the recording began, not counting interruptions."""
    pending: Mapping[str, float] = field(default_factory=dict)
    """Scalars that were logged for the next step."""
    samples: Sequence[int] = ()
    """Indices of examples logged for the next step; states of older versions lack them."""


class Restoration(NamedTuple):
    """Arguments of `trajstore.tracking.tracker.Tracker.restore`."""

    window: int
    keyframe: Tensor
    codes: Callable[[int], tuple[Tensor, Tensor]]
    weights: Tensor
    probes: Tensor
    gradient_energies: Tensor
    sums: Mapping[str, Tensor] | None


class Resumption(NamedTuple):
    """Position at which a recording starts, and the vectors that it needs there."""

    position: Position
    snapshots: frozenset[str] = frozenset()
    """Names of the snapshots that the store keeps."""
    n_measured: Mapping[str, int] = {}
    """Number of rows that the store keeps of every measurement."""
    restoration: Restoration | None = None
    """None before the first window."""
    previous_gradient: Tensor | None = None
    """Gradient of the previous step; None if it is not known."""
    expected_sq: float = math.nan
    """Squared distance from the anchor after the last step; NaN if it is not known."""
    scale: float = math.nan
    """Sum of the magnitudes of the terms of `expected_sq`, which bounds its rounding error."""

    def without_vectors(self) -> "Resumption":
        """Return a copy without the long vectors, which other ranks receive separately."""
        restoration, gradient = self.restoration, self.previous_gradient
        if restoration is not None:
            sums = None if restoration.sums is None else dict[str, Tensor]()
            restoration = restoration._replace(
                keyframe=EMPTY_TENSOR, codes=_no_codes, sums=sums
            )
        gradient = None if gradient is None else EMPTY_TENSOR
        return self._replace(restoration=restoration, previous_gradient=gradient)


def _no_codes(_window: int) -> tuple[Tensor, Tensor]:
    return EMPTY_TENSOR, EMPTY_TENSOR


def first_step(
    resume: Mapping[str, Any] | bool, step: int | None, state: dict[str, Any] | None
) -> int:
    """Return the first optimizer step to record, 0 unless a recording is resumed."""
    if state is not None:
        state_step: int = state["position"]["step"]
        if step not in {None, state_step}:
            raise ValueError(
                f"`resume` is a state at step {state_step}, but `step` is {step}. Leave out "
                "`step`."
            )
        return state_step
    if not resume and step is not None:
        raise ValueError(f"`step` = {step} needs `resume=True`.")
    if resume and (step is None or step < 0):
        raise ValueError(
            "`resume=True` needs `step`, the number of optimizer steps taken before the "
            f"restored checkpoint; got {step}."
        )
    return step or 0


def as_recorded(
    path: str | PathLike[str], spec: RunSpec, *, sketch_bits: int, has_windows: bool
) -> RunSpec:
    """Return a spec with those choices of an existing store that are no options."""
    # `has_windows` is whether the option `reference_every` was given.
    try:
        stored = open_checked(locate(path)).document.spec
    except (OSError, SchemaError):
        # Opening the store for writing reports what is wrong.
        return spec
    if stored.sketch_version != spec.sketch_version:
        spec = replace(
            spec,
            sketch_version=stored.sketch_version,
            sketch_bits=sketch_bits,
            bits_per_number=1,
        )
    is_same = stored.shared_epochs == spec.shared_epochs
    is_same = is_same and Windows.of(stored).length == Windows.of(spec).length
    if is_same or not has_windows:
        spec = replace(
            spec,
            reference_every=stored.reference_every,
            shared_epochs=stored.shared_epochs,
            window_steps=stored.window_steps,
        )
    return replace(
        spec,
        energies=stored.energies,
        window_folds=stored.window_folds,
        displacement_sum=stored.displacement_sum,
        float64=stored.float64,
        scaled=stored.scaled,
        compressed=stored.compressed,
    )


def check_state(state: object, *, size: int, spec: RunSpec) -> dict[str, Any]:
    """Check that a state was made by `make_state` for such a recording, and return it."""
    keys = {
        *("created", "position", "groups", "previous_gradient"),
        *("snapshots", "measured"),
    }
    if not isinstance(state, dict) or not keys <= state.keys():
        found = sorted(state) if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            "`resume` must be True or the result of recorder.state_dict(), got "
            f"{found}. Save it in the checkpoint with the states of model and optimizer."
        )
    problems = state_problems(state, samples=spec.samples)
    gradient, expected = (
        state["previous_gradient"],
        f"torch.{spec.float_type} ({size},)",
    )
    is_dense = isinstance(gradient, Tensor) and gradient.layout == torch.strided
    kind = f"{gradient.dtype} {tuple(gradient.shape)}" if is_dense else repr(gradient)
    if kind != expected:
        problems.append(
            f"previous_gradient: expected {expected} for this model, found {kind}"
        )
    if not _is_sums(state.get("window_sums"), size, spec):
        problems.append(
            "window_sums: expected None or sums of a window of this recording, found "
            f"{repr(state['window_sums'])[:80]}"
        )
    if problems:
        advice = (
            "The state to resume is not what recorder.state_dict() returns for this "
            "recording. The store has not been changed. Resume from another checkpoint, "
            "or with `resume=True` and `step`. Problems:"
        )
        raise SchemaError([advice, *problems])
    return state


def _is_sums(sums: object, size: int, spec: RunSpec) -> bool:
    """Whether a value is None, or sums of `trajstore.tracking.window_sums.WindowSums`."""
    if sums is None:
        return True
    names = {"energies", "folds"}
    if spec.displacement_sum:
        names.add("displacements")
    if not isinstance(sums, Mapping) or sums.keys() != names:
        return False
    if not all(
        isinstance(t, Tensor) and t.dtype == torch.float32 for t in sums.values()
    ):
        return False
    energies, folds = sums["energies"], sums["folds"]
    total = sums.get("displacements", folds.new_zeros(1, spec.sketch_numbers))
    shape = (spec.window_folds, spec.sketch_numbers)
    return bool(
        energies.shape == (size // BLOCK,)
        and (folds.ndim, total.ndim) == (3, 2)
        and folds.shape[1:] == shape
        and total.shape[1:] == shape[1:]
    )


def make_state(
    position: Position,
    writer: Writer,
    previous_gradient: Tensor,
    groups: list[list[str]],
    sums: Mapping[str, Tensor] | None,
) -> dict[str, Any]:
    """Return the state from which a recording resumes: numbers, strings and tensors."""
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
        "n_windows": writer.n_windows,
        "window_sums": sums,
    }


def rewind(
    writer: Writer,
    *,
    spec: RunSpec,
    step: int,
    state: Mapping[str, Any] | None,
) -> Resumption:
    """Read the values that `restore` needs, then rewind a store to a step, and commit."""
    try:
        if state is not None:
            snapshots, measured = state["snapshots"], state["measured"]
        else:
            taken = writer.snapshots
            snapshots = [name for name in taken if taken[name] <= step]
            measured = _measured_before(writer, step)
        writer.rewind(step, snapshots=snapshots, measured=measured)
        position = (
            Position(**state["position"])
            if state is not None
            else _position_from_rows(writer, step)
        )
        position = replace(position, next_window=step, n_windows=writer.n_windows)
        _find_windows(writer, position)
        resumption = Resumption(
            position,
            restoration=_restoration(writer, spec) if writer.n_windows > 0 else None,
            previous_gradient=state["previous_gradient"] if state is not None else None,
        )
        if resumption.restoration is not None and state is not None:
            sums = _window_sums(writer, state)
            restoration = resumption.restoration._replace(sums=sums)
            resumption = resumption._replace(restoration=restoration)
        # At the beginning and after a gap, the next step begins a window.
        if 0 < step == writer.n_steps:
            windows = Windows.of(spec)
            position.next_window = windows.next_start(step, position.windows_from)
            if spec.steps_per_epoch is None and position.epoch_start == step:
                # This epoch was begun by hand just before the checkpoint.
                [iteration] = writer.read("iteration", slice(step - 1, step))
                n_in_window = step - position.window_start
                if begins_window(
                    spec,
                    position.epoch,
                    n_before=int(iteration) + 1,
                    n_in_window=n_in_window,
                ):
                    position.next_window = step
            expected_sq, scale = _expected_sq(writer, spec)
            resumption = resumption._replace(expected_sq=expected_sq, scale=scale)
    except ValueError as error:
        raise ValueError(
            f"{writer.location} cannot be resumed at step {step}, and has not been changed: "
            f"{error} Resume from another checkpoint, restore the damaged files from a "
            "backup, or record to a new path."
        ) from error
    # Commit before new rows overwrite the dropped ones.
    writer.commit()
    writer.note_resumption(step)
    # Steps that the store lacks become rows of NaN; the attribute ``resumes`` counts them.
    _append_missing(writer, spec, position)
    writer.commit()
    return resumption


def restore(tracker: Tracker, resumption: Resumption) -> str | None:
    """Restore the state of a new tracker; return a warning if the parameters are wrong."""
    # If parameters are sharded, all ranks call this function together.
    position = resumption.position
    if resumption.restoration is not None:
        tracker.restore(*resumption.restoration)
    if resumption.previous_gradient is not None:
        tracker.previous_gradient = resumption.previous_gradient
    elif position.step > 0:
        tracker.forget_previous_gradient()
    if not math.isfinite(resumption.expected_sq):
        return None
    actual_sq = float(to_numpy([tracker.displacement_sq()])[0].sum())
    if abs(actual_sq - resumption.expected_sq) <= RESUME_RTOL * resumption.scale:
        return None
    return (
        f"The parameters are not the result of step {position.step - 1}: their "
        f"distance to the last anchor is {max(actual_sq, 0) ** 0.5:.4g}, expected "
        f"{max(resumption.expected_sq, 0) ** 0.5:.4g}. Load the checkpoint of step "
        f"{position.step} into the model before you make the recorder."
    )


def _measured_before(writer: Writer, step: int) -> dict[str, int]:
    """Count the rows of every measurement that were recorded before a step."""
    return {
        name: int(
            np.searchsorted(
                writer.read(f"{table.group}/{STEP}", slice(0, table.n_rows)), step
            )
        )
        for name, table in writer.measurements.items()
    }


def _position_from_rows(writer: Writer, step: int) -> Position:
    """Read the position of a recording from its last row, if no state was saved."""
    if writer.n_steps == 0:
        return Position(step=step)
    last = slice(writer.n_steps - 1, writer.n_steps)
    [epoch], [iteration] = writer.read("epoch", last), writer.read("iteration", last)
    return Position(
        step=step,
        epoch=int(epoch),
        epoch_start=last.start - int(iteration),
        wall_time=writer.steps.last_scalar("wall_time"),
    )


def _find_windows(writer: Writer, position: Position) -> None:
    """Read where the last window began, and the last window that began with an epoch."""
    starts = writer.read("references/start", slice(0, writer.n_windows)).tolist()
    if not starts:
        return
    position.window_start = starts[-1]
    if position.epoch_start in starts:
        position.windows_from = position.epoch_start
        return
    for start in reversed(starts):
        [iteration] = writer.read("iteration", slice(start, start + 1))
        if iteration == 0:
            position.windows_from = start
            return


def _append_missing(writer: Writer, spec: RunSpec, position: Position) -> None:
    """Append rows of NaN for the steps between the end of the store and the position."""
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
    """Read the vectors with which a tracker continues in the last window of the store."""
    window = writer.n_windows - 1
    keyframe = max(window - 1, 0) // KEYFRAME_EVERY

    def row(name: str, index: int) -> Tensor:
        return torch.from_numpy(writer.read(name, slice(index, index + 1))[0])

    def codes(index: int) -> tuple[Tensor, Tensor]:
        return row("references/codes", index), row("references/scales", index)

    # The tracker reads these codes after the store is rewound, so they must be intact.
    kept = window + 1 - n_codes(spec.basis)
    for needed in range(max(1, min(keyframe * KEYFRAME_EVERY + 1, kept)), window + 1):
        codes(needed)
    [start] = writer.read("references/start", slice(window, window + 1))
    tables = writer.steps.products(slice(int(start), writer.n_steps))
    energies = tables[..., table_columns(spec)["grad_sq"].start]
    # Rows of steps that were not recorded hold no gradients.
    scalars = writer.read("scalars", slice(int(start), writer.n_steps))
    is_recorded = np.isfinite(scalars).any(1)
    return Restoration(
        window,
        row("references/keyframes", keyframe),
        codes,
        row("references/weights", window),
        row("references/probes", window),
        torch.from_numpy(energies[is_recorded].astype(spec.float_type)),
        None,
    )


def _window_sums(
    writer: Writer, state: Mapping[str, Any]
) -> Mapping[str, Tensor] | None:
    """Return the sums in a state if they are those of the last window of the store."""
    # States of older versions have no sums. If the store lacks rows, it may lack windows too.
    is_same = state.get("n_windows") == writer.n_windows
    is_complete = state["position"]["step"] == writer.n_steps
    return state["window_sums"] if is_same and is_complete else None


def _expected_sq(writer: Writer, spec: RunSpec) -> tuple[float, float]:
    """Return |x - anchor|^2 after the last step, and the sum of its terms' magnitudes."""
    last = slice(writer.n_steps - 1, writer.n_steps)
    table = writer.steps.products(last)[0].astype(np.float64)
    columns = table_columns(spec)
    before, update_sq, update = (
        float(table[:, columns[name].start].sum())
        for name in ("displacement_sq", "update_sq", "update_dot_displacement")
    )
    return before + 2 * update + update_sq, before + 2 * abs(update) + update_sq
