"""After training, find targets x*: the points that analyses measure against."""

import os
import warnings
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import table_columns
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.ranges import as_ranges
from trajstore.reading.run import Run, open_run
from trajstore.store.location import is_remote, name_of

FloatArray = npt.NDArray[np.floating[Any]]

PART: Final = 1 << 22
"""Number of elements of a vector to read at a time."""

FILES: Final = (".npz", ".pt", ".pth")
"""Endings of files of tensors that may be targets."""

CONTAINERS: Final = ("model", "state_dict", "model_state_dict")
"""Keys under which checkpoints keep the tensors of a model."""

AT_STEP: Final = "step:"
"""Beginning of a text that selects the anchor of the window that starts at a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A point x* in the layout of a run."""

    label: str  # such as "final", "epoch 12" or "snapshot warm"
    note: str  # description of the target
    identity: str  # text that differs between targets, even if their labels are equal
    read: Callable[[slice], FloatArray]  # function that reads a part of the flat vector
    values: FloatArray | None = None  # flat vector; None if it is read from a store
    # The run with the point, and the number of steps before it; None if the values are given.
    at: tuple[Run, int] | None = None
    is_anchor: bool = False
    is_reported: bool = (
        False  # whether a warning has said that the target is not finite
    )


TargetLike = str | int | Run | Mapping[str, Any] | os.PathLike[str] | Target
"""Types of values that users may pass as ``reference=``, see `parameters_at`; and targets
that are found already."""


def find_target(run: Run, reference: TargetLike) -> Target:
    """Return the target that a ``reference=`` selects; `parameters_at` explains its values."""
    if isinstance(reference, Target):
        return reference
    if isinstance(reference, os.PathLike):
        reference = os.fspath(reference)
        if not _is_file(reference):
            return _final_of(open_run(reference), run)
    if isinstance(reference, str):
        if reference == "final":
            return _final(run)
        if reference.startswith(AT_STEP) and reference not in run.snapshots:
            return _at_step(run, reference)
        if reference not in run.snapshots and _is_file(reference):
            return _in_file(run, reference)
        if reference in run.snapshots or not _is_place(reference):
            return _snapshot(run, reference)
        return _final_of(open_run(reference), run)
    if isinstance(reference, int | np.integer) and not isinstance(reference, bool):
        return _epoch(run, int(reference))
    if isinstance(reference, Run):
        return _final_of(reference, run)
    if isinstance(reference, Mapping):
        return _given(run, reference, label="given", note="arrays given by the caller")
    raise TypeError(
        "`reference` must be 'final', the name of a snapshot, an epoch, 'step:4500', another "
        "run, a file, or a mapping from parameter name to array; got "
        f"{type(reference).__name__}."
    )


@accepts_path
def parameters_at(run: Run, reference: TargetLike = "final") -> dict[str, FloatArray]:
    """Return the parameters at a point of the run, for a model to load.

    Parameters
    ----------
    run : Run
        As returned by `trajstore.open_run`.
    reference : str, int, Run or mapping, default: "final"
        ``"final"`` for the last iterate; ``"step:4500"`` for the anchor of the window that
        starts at step 4500, unless a snapshot has this name; any other string for the
        snapshot of that name; an integer for the anchor at the start of that epoch; another
        run, or the path or URL of its store, for its last iterate; a mapping from parameter
        name to array for the arrays themselves (unknown names are ignored); or the path of a file
        with such a mapping, ``.npz`` of NumPy, or ``.pt`` or ``.pth`` of torch.

    Returns
    -------
    dict from str to numpy.ndarray
        Writable arrays by parameter name, in the shapes of the parameters: float64 if some
        of the run's parameters are float64, float32 otherwise.
        ``model.load_state_dict({k: torch.from_numpy(v) for k, v in ...}, strict=False)``
        loads them into a model, which keeps its buffers and its untrained parameters.

    Raises
    ------
    KeyError
        If there is no such snapshot or epoch, or if no window starts at the step; the message
        lists the existing ones.
    ValueError
        If the run has no last iterate; if no number follows ``step:``; or if tensors of a mapping or of another run are
        missing or have different shapes; the message lists all of them.
    TypeError
        If `reference` has another type.

    Examples
    --------
    >>> import trajstore
    >>> last = trajstore.parameters_at(trajstore.open_run(example_run))
    >>> {name: values.shape for name, values in last.items()}
    {'0.weight': (40, 20), '0.bias': (40,), '2.weight': (3, 40), '2.bias': (3,)}
    """
    target, size = find_target(run, reference), run.layout.size
    flat = np.empty(size, run.spec.float_type)
    for start in range(0, size, PART):
        part = slice(start, min(start + PART, size))
        flat[part] = target.read(part)
    return run.layout.unflatten(flat)


def iterate(run: Run, reference: TargetLike = "final") -> dict[str, FloatArray]:
    """Call `parameters_at` under its former name."""
    warnings.warn(
        "trajstore.iterate is now trajstore.parameters_at, with the same arguments.",
        DeprecationWarning,
        stacklevel=2,
    )
    return parameters_at(run, reference)


def read_target(text: str, run: Run) -> TargetLike:
    """Parse a target from a command line; the name of a snapshot takes precedence."""
    if text in run.snapshots:
        return text
    if text.isdecimal():
        return int(text)
    if _is_file(text):
        return _in_file(run, text)
    return open_run(text) if _is_place(text) else text


def _is_place(text: str) -> bool:
    """Whether a target names a URL or a directory, so that it may be another run."""
    try:
        return is_remote(text) or (bool(text) and Path(text).is_dir())
    except (OSError, ValueError):  # The text cannot be a path.
        return False


def _is_file(text: str) -> bool:
    """Whether a target names a file of tensors."""
    try:
        return Path(text).suffix in FILES and Path(text).is_file()
    except (OSError, ValueError):  # The text cannot be a path.
        return False


def _in_file(run: Run, path: str) -> Target:
    """Return the tensors of a file as a target."""
    found = _tensors_in(path)
    # Checkpoints often hold the model next to the optimizer.
    inner = [key for key in CONTAINERS if isinstance(found.get(key), Mapping)]
    tensors = found[inner[0]] if inner else found
    name = Path(path).name
    try:
        return _given(run, tensors, label=f"file {name}", note=f"the tensors in {name}")
    except ValueError as error:
        raise ValueError(
            f"The tensors in {path} are no target for {run.location}: {error}\nThe file must hold "
            "a tensor for every recorded parameter, by its name, such as "
            "torch.save(model.state_dict(), path)."
        ) from error


def _tensors_in(path: str) -> Mapping[str, Any]:
    """Read a mapping of arrays or tensors, without executing anything that a file holds."""
    try:
        if path.endswith(".npz"):
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        torch = import_module("torch")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (BadZipFile, EOFError, RuntimeError, UnpicklingError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a file of tensors: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(found, Mapping):
        raise ValueError(
            f"{path} holds {type(found).__name__}, expected a mapping from parameter name to "
            "tensor, such as model.state_dict()."
        )
    return found


def _given(run: Run, arrays: Mapping[str, Any], *, label: str, note: str) -> Target:
    names = [name for name in run.layout.names if name in arrays]
    flat = run.layout.flatten(
        {name: _as_array(arrays[name]) for name in names}, run.spec.float_type
    )
    return Target(
        label=label,
        note=note,
        identity=f"sha256 {sha256(flat.tobytes()).hexdigest()}",
        read=flat.__getitem__,
        values=flat,
    )


# Other processes read targets. A partial of these functions can be pickled, because runs
# can be. Bound methods of `run.stored` cannot, because they include its caches.


def _read_vector(run: Run, name: str, elements: slice) -> FloatArray:
    return run.stored.vector(name, elements)


def _read_anchor(run: Run, window: int, elements: slice) -> FloatArray:
    return run.stored.anchors.decode(window, elements)


def _final(run: Run) -> Target:
    if not run.has_final:
        raise ValueError(
            f"{run.location} has no final iterate: its status is {run.status!r}, after "
            f"{run.n_steps} steps. {_alternatives(run)}"
        )
    return Target(
        label="final",
        note=f"the last iterate, in {run.spec.float_type}",
        identity="final",
        read=partial(_read_vector, run, "final"),
        at=(run, run.stored.step_rows.n_rows),
    )


def _alternatives(run: Run) -> str:
    start = last_finite_start(run)
    if start is None:
        return "No step has been recorded, so no other iterate is available."
    advice = f'Use reference="{AT_STEP}{start}", the start of the last window'
    if epoch := max(run.stored.epoch_windows, default=0):
        advice += f", or reference={epoch}, the last epoch that starts with an anchor"
    return f"{advice}; or a snapshot." if run.snapshots else f"{advice}."


def _snapshot(run: Run, name: str) -> Target:
    if name not in run.snapshots:
        absent = " Nor is there a store at that path." if name.endswith(".zarr") else ""
        raise KeyError(
            f"No snapshot {name!r} in {run.location}; it has {list(run.snapshots)}. Snapshots "
            f"are made by recorder.snapshot(name) during training. Other targets are 'final', the "
            f"number of an epoch, such as 3, and the start of a window, such as 'step:500'.{absent}"
        )
    stored = run.stored.document.snapshots[name]
    return Target(
        label=f"snapshot {name}",
        note=f"snapshot {name!r} before step {stored.step}, in {run.spec.float_type}",
        identity=f"snapshot {stored.array} of step {stored.step}",
        read=partial(_read_vector, run, stored.array),
        at=(run, stored.step),
    )


def _epoch(run: Run, epoch: int) -> Target:
    if epoch not in run.stored.epoch_windows:
        epochs = as_ranges(run.stored.epoch_windows) or "none"
        advice = ""
        if epoch in run.stored.step_rows.epochs:
            advice = (
                " Short epochs share an anchor: give one of these, or record with "
                "reference_every=, the steps of an epoch, or with recorder.snapshot(name)."
            )
        elif run.n_epochs == 1:
            starts = _window_starts(run)
            advice = (
                f' The run has no epochs: give the start of a window, such as "{AT_STEP}'
                f'{starts[len(starts) // 2]}" (--reference {AT_STEP}N), or a snapshot.'
            )
        raise KeyError(
            f"No anchor at the start of epoch {epoch} in {run.location}; the epochs that "
            f"start with one: {epochs}.{advice}"
        )
    window = run.stored.epoch_windows[epoch]
    return _anchor(
        run, window, label=f"epoch {epoch}", place=f"the start of epoch {epoch}"
    )


def _at_step(run: Run, text: str) -> Target:
    """Return the anchor of the window that starts at a step."""
    number = text.removeprefix(AT_STEP)
    if not (number.isascii() and number.isdecimal()):
        raise ValueError(
            f"The reference {text!r} names no step; write {AT_STEP}4500 for the anchor of the "
            "window that starts at step 4500."
        )
    starts, step = _window_starts(run), int(number)
    window = bisect_left(starts, step)
    if step not in starts[window : window + 1]:
        near = as_ranges(starts[max(window - 2, 0) : window + 2]) or "none"
        raise KeyError(
            f"No window starts at step {step} in {run.location}; the nearest steps that start "
            f"one: {near}."
        )
    return _anchor(run, window, label=f"step {step}", place=f"step {step}")


def _anchor(run: Run, window: int, *, label: str, place: str) -> Target:
    return Target(
        label=label,
        note=f"the anchor at {place}: a lossy code of the iterate there, in 8-bit steps",
        identity=label,
        read=partial(_read_anchor, run, window),
        at=(run, _window_starts(run)[window]),
        is_anchor=True,
    )


def _window_starts(run: Run) -> list[int]:
    """Return the first steps of the windows whose first row is stored."""
    steps = run.stored.step_rows
    starts: list[int] = steps.starts[steps.starts < steps.n_rows].tolist()
    return starts


def last_finite_start(run: Run) -> int | None:
    """Return the last step that starts a window with finite parameters, None without steps."""
    # Parameters that are not finite stay so, and the first ones are taken to be finite.
    starts = _window_starts(run)
    window = bisect_left(
        starts, True, lo=1, key=lambda start: not reached_finitely(run, start)
    )
    return starts[window - 1] if starts else None


def reached_finitely(run: Run, step: int) -> bool:
    """Whether the stored rows show that the parameters before a step are finite."""
    # Anchors themselves do not show it: they follow the parameters only while these are finite.
    steps = run.stored.step_rows
    if steps.n_rows == 0:
        return True
    name = "displacement_sq" if step < steps.n_rows else "update_sq"
    step = min(step, steps.n_rows - 1)
    row = steps.rows("tables", slice(step, step + 1))
    return bool(np.isfinite(row[..., table_columns(run.spec)[name]]).all())


def _final_of(other: Run, run: Run) -> Target:
    if not other.has_final:
        raise ValueError(
            f"{other.location} has no final iterate: its status is {other.status!r}. Give a "
            "run that was closed."
        )
    final = _final(other)
    read, flat = final.read, None
    if other.layout != run.layout:
        values = other.layout.unflatten(final.read(slice(0, other.layout.size)))
        flat = run.layout.flatten(values, run.spec.float_type)
        read = flat.__getitem__
    created = other.stored.document.created
    return Target(
        label=f"final of {name_of(other.location)}",
        note=f"the last iterate of {name_of(other.location)}, in {other.spec.float_type}",
        identity=f"final of {created}, {other.n_steps} steps, at {other.location}",
        read=read,
        values=flat,
        at=final.at,
    )


def _as_array(value: Any) -> Any:
    """Convert a tensor of any device and precision to an array, without importing torch."""
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    return (tensor.float() if tensor.element_size() < 4 else tensor).numpy()
