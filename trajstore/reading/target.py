"""Points of parameter space to measure a run against, chosen after the training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trajstore.reading.ranges import as_ranges
from trajstore.reading.run import Run, open_run
from trajstore.store.location import is_remote, name_of

FloatArray = npt.NDArray[np.float32]

Reference = str | int | Run | Mapping[str, Any]
"""What a user may give for ``reference=``."""

PART: Final = 1 << 22
"""Elements of a vector that are read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencePoint:
    """A point x* in the layout of a run.

    Attributes
    ----------
    label : str
        Short name: ``final``, ``epoch 12``, ``snapshot warm`` or the like.
    note : str
        One sentence on what it is.
    identity : str
        What tells it from any other point, also from one of the same label.
    read : callable
        Takes a slice of the flat vector, returns that part, float32.
    values : numpy.ndarray or None
        The whole vector, where it is not read from a store.
    """

    label: str
    note: str
    identity: str
    read: Callable[[slice], FloatArray]
    values: FloatArray | None = None


def reference_point(run: Run, reference: Reference) -> ReferencePoint:
    """Find a reference point for a run.

    Parameters
    ----------
    run : Run
        The run to measure.
    reference : str, int, Run or mapping
        ``"final"``, the last iterate; another string, the name of a snapshot; an
        integer, the epoch with whose start a stored reference begins; another run, its
        last iterate; a mapping from parameter name to array, of which other keys are
        ignored.

    Returns
    -------
    ReferencePoint
        Reads its values from the store when asked.

    Raises
    ------
    KeyError
        If there is no such snapshot or epoch; says which there are.
    ValueError
        If the run has no last iterate, or if tensors of a mapping or of the other run
        are missing or have other shapes; all of them are listed.
    TypeError
        If `reference` is none of these.
    """
    if isinstance(reference, str):
        return _final(run) if reference == "final" else _snapshot(run, reference)
    if isinstance(reference, int | np.integer) and not isinstance(reference, bool):
        return _epoch(run, int(reference))
    if isinstance(reference, Run):
        return _final_of(reference, run)
    if isinstance(reference, Mapping):
        names = [name for name in run.layout.names if name in reference]
        flat = run.layout.flatten({name: _as_array(reference[name]) for name in names})
        return ReferencePoint(
            label="given",
            note="arrays given by the caller",
            identity=f"sha256 {sha256(flat.tobytes()).hexdigest()}",
            read=flat.__getitem__,
            values=flat,
        )
    raise TypeError(
        "`reference` must be 'final', the name of a snapshot, an epoch, another run or a "
        f"mapping from parameter name to array; got {type(reference).__name__}."
    )


def iterate(run: Run, reference: Reference = "final") -> dict[str, FloatArray]:
    """Return the parameters at a reference point, for a model to load.

    Parameters
    ----------
    run : Run
        As returned by `trajstore.open_run`.
    reference : str, int, Run or mapping, default: "final"
        As `analyzers.path_geometry` takes it: ``"final"`` for the last iterate, another
        string for a snapshot, an integer for the start of an epoch, and so on.

    Returns
    -------
    dict from str to numpy.ndarray
        By name of the parameter, float32, of its shape, writable.
        ``model.load_state_dict({k: torch.from_numpy(v) for k, v in ...}, strict=False)``
        loads them; the model keeps its buffers, and what was not trained.

    Raises
    ------
    KeyError
        If there is no such snapshot or epoch.
    ValueError
        If the run has no last iterate, or `reference` lacks tensors.
    TypeError
        If `reference` is of another kind.

    Examples
    --------
    >>> import trajstore
    >>> last = trajstore.iterate(trajstore.open_run(example_run))
    >>> {name: values.shape for name, values in last.items()}
    {'0.weight': (40, 20), '0.bias': (40,), '2.weight': (3, 40), '2.bias': (3,)}
    """
    point, size = reference_point(run, reference), run.layout.size
    flat = np.empty(size, np.float32)
    for start in range(0, size, PART):
        part = slice(start, min(start + PART, size))
        flat[part] = point.read(part)
    return run.layout.unflatten(flat)


def read_reference(text: str, run: Run) -> Reference:
    """Read a reference from a command line; names of snapshots come first.

    Parameters
    ----------
    text : str
        ``final``, the name of a snapshot, the number of an epoch, or the path or URL of
        another run.
    run : Run
        The run to measure.

    Returns
    -------
    str, int or Run
        As `reference_point` takes it.
    """
    if text in run.snapshots:
        return text
    if text.isdecimal():
        return int(text)
    return open_run(text) if is_remote(text) or Path(text).is_dir() else text


def _final(run: Run) -> ReferencePoint:
    if not run.has_final:
        raise ValueError(
            f"{run.location} has no final iterate: its status is {run.status!r}, after "
            f"{run.n_steps} steps. {_offer(run)}"
        )
    return ReferencePoint(
        label="final",
        note="the last iterate, in float32",
        identity="final",
        read=partial(_read, run, "final"),
    )


def _offer(run: Run) -> str:
    if not run.stored.epoch_windows:
        return "No epoch begins with a stored reference, so there is none to offer."
    epoch = max(run.stored.epoch_windows)
    return (
        f"Take its last reference at the start of an epoch, reference={epoch}, or "
        "another epoch, snapshot or mapping."
    )


def _snapshot(run: Run, name: str) -> ReferencePoint:
    if name not in run.snapshots:
        raise KeyError(
            f"No snapshot {name!r} in {run.location}; it has {list(run.snapshots)}. Snapshots "
            "are made by recorder.snapshot(name) during training."
        )
    stored = run.stored.document.snapshots[name]
    return ReferencePoint(
        label=f"snapshot {name}",
        note=f"snapshot {name!r} before step {stored.step}, in float32",
        identity=f"snapshot {stored.array} of step {stored.step}",
        read=partial(_read, run, stored.array),
    )


def _epoch(run: Run, epoch: int) -> ReferencePoint:
    if epoch not in run.stored.epoch_windows:
        raise KeyError(
            f"No reference at the start of epoch {epoch} in {run.location}; there are those "
            f"of these epochs: {as_ranges(run.stored.epoch_windows) or 'none'}."
        )
    return ReferencePoint(
        label=f"epoch {epoch}",
        note=f"the stored reference at the start of epoch {epoch}: a lossy code of the "
        "iterate there, in 8-bit steps",
        identity=f"epoch {epoch}",
        read=partial(_read_window, run, run.stored.epoch_windows[epoch]),
    )


def _final_of(other: Run, run: Run) -> ReferencePoint:
    if not other.has_final:
        raise ValueError(
            f"{other.location} has no final iterate: its status is {other.status!r}. Give a "
            "run that was closed, or a mapping from parameter name to array."
        )
    final = _final(other)
    read, flat = final.read, None
    if other.layout != run.layout:
        values = other.layout.unflatten(final.read(slice(0, other.layout.size)))
        flat = run.layout.flatten(values)
        read = flat.__getitem__
    return ReferencePoint(
        label=f"final of {name_of(other.location)}",
        note=f"the last iterate of {name_of(other.location)}, in float32",
        identity=f"final of {other.stored.document.created}, {other.n_steps} steps, at "
        f"{other.location}",
        read=read,
        values=flat,
    )


def _read(run: Run, array: str, elements: slice) -> FloatArray:
    return run.stored.vector(array, elements)


def _read_window(run: Run, window: int, elements: slice) -> FloatArray:
    return run.stored.anchors.decode(window, elements)


def _as_array(value: Any) -> Any:
    """Convert tensors, on any device and with any number of bits, without torch."""
    return value.detach().cpu().float().numpy() if hasattr(value, "detach") else value
