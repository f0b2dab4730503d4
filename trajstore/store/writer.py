"""Write a recorded run to its store: rows, windows, parameter vectors and metadata."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from warnings import warn

import numpy as np
import numpy.typing as npt

from trajstore._version import __version__
from trajstore.format.arrays import (
    ENDED,
    KEYFRAMES,
    ArraySpec,
    n_keyframes,
    vector_array,
    window_arrays,
)
from trajstore.format.document import (
    FORMAT,
    FORMAT_VERSION,
    Document,
    RowGroup,
    Snapshot,
    parse_document,
)
from trajstore.format.layout import BLOCK, Layout
from trajstore.format.optimizer_facts import OPTIMIZER, GroupFacts
from trajstore.format.run_spec import RunSpec, SchemaError
from trajstore.store.commit import Committer
from trajstore.store.deletion import remove_leftovers
from trajstore.store.event_loop import EventLoop
from trajstore.store.holder import PROTOTYPE, WRITER, StoreLockedError
from trajstore.store.lease import LEASE_SECONDS
from trajstore.store.location import inside, is_remote, locate, open_store
from trajstore.store.lock import WriterLock, writer_lock
from trajstore.store.row_table import RowTable

Array = npt.NDArray[Any]


OTHER_RUN: Final = (
    "The store has not been changed. Resume with the model and the options of its recording, or "
    "choose another path; overwrite=True deletes it."
)


class Window(NamedTuple):
    """A window in its stored form."""

    start: int  # first optimizer step
    codes: Array  # coded difference from the previous anchor, int8 (param,)
    scales: Array  # scales of the codes, float32 (block,)
    weights: Array  # weights of the sketch, float32 (layer,)
    # Products of x - r with itself and with the basis of the previous window, where x is the
    # window's first iterate and r the previous anchor, float32 (layer, coordinate).
    arrival: Array
    probes: Array  # probes of the anchor, float64 (probe,); empty in exact recordings
    keyframe: Array | None  # decoded anchor, float32 (param,); None if not a keyframe


class EndedWindow(NamedTuple):
    """What is known when a window ends, in its stored form; NaN where it is not known."""

    # Energy of the gradient per element of each block, float16 (block,), relative to the
    # largest in the layer; the mean of the window's steps.
    energies: Array
    # Sketch of the sum of the window's gradients: signs, uint8 (fold, byte), and scales,
    # float32 (fold, scale).
    sum_signs: Array
    sum_scales: Array
    # Sketch of the sum of the window's displacements: codes, uint8 (byte,), and scales, float32
    # (scale,).
    displacement_codes: Array
    displacement_scales: Array


class Writer:
    """Writes the store of one run; not thread-safe."""

    # `resume` continues an existing store, and `created` identifies the expected recording.
    # With `fsync`, commits survive a power loss. `attrs` is user metadata; when a recording
    # is resumed, new values replace old values of the same name.
    def __init__(
        self,
        location: str | os.PathLike[str],
        spec: RunSpec,
        *,
        resume: bool = False,
        created: str | None = None,
        fsync: bool = False,
        attrs: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.location = locate(location)
        self._spec, self._size = spec, Layout(spec.names, spec.shapes).size
        self._loop = EventLoop()
        self._store = open_store(self.location, own_loop=True, fsync=fsync)
        self._lock: WriterLock | None = None
        self._arrays = Committer(self._store, self._loop)
        self.steps = RowTable(self._arrays, spec)
        self.measurements: dict[str, RowTable] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._resumes: list[dict[str, Any]] = []
        self._attrs: dict[str, Any] = {}
        # Replaced as a whole by the training thread.
        self.optimizer: tuple[GroupFacts, ...] = ()
        self._attributes: dict[str, object] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "written_by": f"trajstore {__version__}",
            "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
        self.n_windows = 0
        try:
            self._open(resume=resume, created=created)
        except BaseException:
            self.close()
            raise
        self._attrs |= attrs

    def _open(self, *, resume: bool, created: str | None) -> None:
        is_free = self._is_free()
        if not is_free and not resume:
            raise FileExistsError(
                f"{self.location} exists already. A recording does not overwrite another: "
                "choose a new path, resume the recording, or delete it (in Python, "
                "overwrite=True)."
            )
        if is_free and created is not None:
            raise FileNotFoundError(
                f"There is nothing at {self.location}; expected the recording that began "
                f"at {created}, to resume it."
            )
        if is_free and not is_remote(self.location):
            Path(self.location).mkdir(parents=True)
        self._lock = writer_lock(self.location, self._store)
        self._loop.run(self._lock.acquire())
        root = self._loop.run(self._store.get("zarr.json", PROTOTYPE))
        if root is not None:
            self._continue(root.to_bytes(), created)
        else:
            self._check_leftovers()
            self._remove_partial_files()
            self._arrays.declare(self.steps.arrays | self._window_arrays())
        self._attributes["status"] = "running"

    def _is_free(self) -> bool:
        if is_remote(self.location):
            return self._loop.run(self._store.is_empty(""))
        return not Path(self.location).exists()

    def _remove_partial_files(self) -> None:
        """Remove files that a killed process did not finish."""
        if not is_remote(self.location):
            for partial in Path(self.location).rglob("*.partial"):
                if not partial.is_dir():
                    partial.unlink(missing_ok=True)

    def _check_leftovers(self) -> None:
        """Refuse a directory with files that no recording creates."""
        if is_remote(self.location):
            return
        ours = {*self.steps.arrays, "references"}
        names = {path.name for path in Path(self.location).iterdir()}
        ours |= {name for name in names if fnmatchcase(name, "zarr.*.partial")}
        foreign = sorted(name for name in names - ours if not name.startswith("."))
        if foreign:
            raise FileExistsError(
                f"{self.location} is not a trajectory store, but holds {foreign[:3]}. "
                "Choose another path."
            )

    def _continue(self, root: bytes, created: str | None) -> None:
        """Continue the store that a root document describes."""
        document = parse_document(root)
        if problems := spec_differences(document.spec, self._spec):
            raise SchemaError(
                [
                    f"{self.location} is the recording of a different run; differences:",
                    *problems,
                    OTHER_RUN,
                ]
            )
        if created not in {None, document.created}:
            problem = (
                f"{self.location} is a recording that began at {document.created}; the state "
                f"to resume from belongs to a recording that began at {created}."
            )
            raise SchemaError([problem])
        self._snapshots |= document.snapshots
        self._resumes += map(dict, document.resumes)
        self._attrs |= document.attrs
        self.optimizer = document.optimizer
        self._attributes["created"] = document.created
        self.steps = self._table(document, document.steps)
        for name, group in document.measurements.items():
            self.measurements[name] = self._table(document, group)
        specs = self.steps.arrays | self._window_arrays()
        for table in self.measurements.values():
            specs |= table.arrays
        vectors = [snapshot.array for snapshot in self._snapshots.values()]
        vectors += ["final"] if document.has_final else []
        specs |= dict.fromkeys(vectors, self._vector_array())
        if not is_remote(self.location):
            for path in specs:
                inside(self.location, f"{path}/zarr.json")
                inside(self.location, f"{path}/c")
        self._remove_partial_files()
        lengths = {path: document.arrays[path].length for path in specs}
        self._arrays.has_checks = document.has_checks
        self._attributes["format_version"] = document.version
        self._arrays.continue_from(specs, lengths, document.checks)
        self.n_windows = document.n_windows

    def _table(self, document: Document, group: RowGroup) -> RowTable:
        return RowTable(
            self._arrays,
            self._spec,
            group.path,
            metrics=group.metrics,
            n_rows=document.n_rows(group),
        )

    def _window_arrays(self) -> dict[str, ArraySpec]:
        return window_arrays(self._spec, size=self._size, block=BLOCK)

    @property
    def n_steps(self) -> int:
        """Number of optimizer steps written."""
        return self.steps.n_rows

    @property
    def n_ended(self) -> int:
        """Number of windows whose end is written, in a store that keeps what is known there."""
        lengths = [self._arrays.length(n) for n in ENDED if n in self._window_arrays()]
        return max(lengths, default=self.n_windows)

    @property
    def snapshots(self) -> dict[str, int]:
        """The step that followed each snapshot, by name."""
        return {name: snapshot.step for name, snapshot in self._snapshots.items()}

    @property
    def created(self) -> str:
        """Time at which the recording began; identifies the store."""
        return str(self._attributes["created"])

    @property
    def identity(self) -> str:
        """The recording, and how often it was resumed; the records of its journal name it."""
        return f"{self.created} {len(self._resumes)}"

    def read(self, name: str, rows: slice) -> Array:
        """Read committed rows of an array."""
        return self._arrays.read(name, rows)

    def measurement(self, name: str) -> RowTable:
        """Return the table of a measurement, created if it does not exist."""
        if name not in self.measurements:
            group = f"measurements/{len(self.measurements)}"
            self.measurements[name] = RowTable(self._arrays, self._spec, group)
            self._arrays.declare(self.measurements[name].arrays)
        return self.measurements[name]

    def rewind(
        self,
        n_steps: int,
        *,
        snapshots: Iterable[str],
        measured: Mapping[str, int],
    ) -> None:
        """Keep the first `n_steps` and the named snapshots in the next commit."""
        # `measured` holds the number of rows to keep of each measurement, default 0.
        n_steps = min(n_steps, self.n_steps)
        starts = self.read("references/start", slice(0, self.n_windows))
        self.n_windows = int(np.searchsorted(starts, n_steps))
        lengths = dict.fromkeys(self._window_arrays(), self.n_windows)
        lengths[KEYFRAMES] = n_keyframes(self.n_windows)
        # The last window is open again.
        ended = [name for name in ENDED if name in lengths]
        lengths |= dict.fromkeys(ended, min(self.n_ended, max(self.n_windows - 1, 0)))
        self.steps.n_rows = n_steps
        for name, table in self.measurements.items():
            table.n_rows = min(table.n_rows, measured.get(name, 0))
        for table in (self.steps, *self.measurements.values()):
            lengths |= dict.fromkeys(table.arrays, table.n_rows)
        self._arrays.rewind(lengths)
        kept = set(snapshots)
        for name in [name for name in self._snapshots if name not in kept]:
            self._arrays.remove(self._snapshots.pop(name).array)
        if self._arrays.has("final"):
            self._arrays.remove("final")
        # Every table that later rows are appended to must be intact.
        large = {"references/codes", KEYFRAMES}
        self._arrays.read_tails(name for name in lengths if name not in large)

    def note_resumption(self, step: int) -> None:
        """Note the step at which the recording resumes, and how many steps before it are lost."""
        n_missing = step - self.n_steps
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._resumes.append({"step": step, "n_missing": n_missing, "at": now})

    def append_window(self, window: Window) -> None:
        """Append a window; nothing is known of the end of a window that was not ended before."""
        if self.n_ended < self.n_windows:
            self.end_window(self._unknown_end())
        self.n_windows += 1
        if window.keyframe is not None:
            self._arrays.append_large("references/keyframes", window.keyframe)
        self._arrays.append_large("references/codes", window.codes)
        self._arrays.append(
            {
                "references/start": np.array([window.start]),
                "references/scales": window.scales[None],
                "references/weights": window.weights[None],
                "references/arrival": window.arrival[None],
                "references/probes": window.probes[None],
            }
        )

    def end_window(self, ended: EndedWindow) -> None:
        """Append what is known at the end of the last window."""
        rows = dict(zip(ENDED, ended, strict=True))
        arrays = self._window_arrays()
        self._arrays.append({n: row[None] for n, row in rows.items() if n in arrays})

    def _unknown_end(self) -> EndedWindow:
        arrays = self._window_arrays()
        specs = [arrays.get(name, arrays["references/start"]) for name in ENDED]
        return EndedWindow(
            *(np.full(spec.inner, spec.missing, spec.dtype) for spec in specs)
        )

    def write_snapshot(
        self, name: str, step: int, read: Callable[[slice], Array]
    ) -> None:
        """Write the parameters before optimizer step `step`, in full precision."""
        numbers = [int(s.array.partition("/")[2]) for s in self._snapshots.values()]
        key = f"snapshots/{max(numbers, default=-1) + 1}"
        if name in self._snapshots:
            # Until the commit, readers need the former vector.
            self._arrays.remove(self._snapshots.pop(name).array)
        self._write_vector(key, read)
        self._snapshots[name] = Snapshot(key, step)

    def write_final(
        self, read: Callable[[slice], Array] | None, *, status: str
    ) -> None:
        """Write the final parameters, if known, and the status of the run."""
        if read is not None:
            self._write_vector("final", read)
        self._attributes["status"] = status

    def _write_vector(self, key: str, read: Callable[[slice], Array]) -> None:
        self._arrays.write_vector(key, self._vector_array(), self._size, read)

    def _vector_array(self) -> ArraySpec:
        return vector_array(self._size, self._spec.float_type)

    def close(self) -> None:
        """Release the lock; warn if that fails, because all commits are complete."""
        lock, self._lock = self._lock, None
        try:
            if lock is not None:
                self._loop.run(lock.release())
        except Exception as error:  # noqa: BLE001 - each kind of storage has its own errors
            warn(
                f"{self.location} could not be marked as free ({error!r}). Its contents "
                "are complete up to the last commit. If it is refused as being written, "
                f"delete {WRITER!r} in it, or wait {LEASE_SECONDS // 60} minutes.",
                stacklevel=2,
            )
        finally:
            self._loop.close()

    def _facts(self) -> dict[str, object]:
        """Return the attribute with facts about the optimizer, if there are any."""
        facts = [group.to_json() for group in self.optimizer]
        return {OPTIMIZER: facts} if facts else {}

    def commit(self) -> None:
        """Make everything written so far visible; raise an error if the lock was lost."""
        try:
            self._commit()
        except StoreLockedError:
            remove_leftovers(self.location, self._loop, self._arrays.names)
            raise

    def _commit(self) -> None:
        assert self._lock is not None
        self._loop.run(self._lock.confirm())
        self._arrays.commit(
            self._attributes
            | {
                "spec": self._spec.to_json(),
                "attrs": self._attrs,
                "metrics": self.steps.metrics,
                "measurements": {
                    name: {"group": table.group, "metrics": table.metrics}
                    for name, table in self.measurements.items()
                },
                "snapshots": {
                    name: snapshot._asdict()
                    for name, snapshot in self._snapshots.items()
                },
                "resumes": self._resumes,
            }
            | self._facts()
        )
        # A successor that took over before this commit may have read the root document before;
        # and if the store was deleted during the commit, parts of it were written again.
        self._loop.run(self._lock.confirm())


def spec_differences(stored: RunSpec, given: RunSpec) -> list[str]:
    """List the differences that prevent resuming; ``total_steps`` may differ."""
    before = dict(zip(stored.names, stored.shapes, strict=True))
    now = dict(zip(given.names, given.shapes, strict=True))
    problems = [
        f"parameter {name}: no longer in the model" for name in before.keys() - now
    ]
    problems += [f"parameter {name}: new" for name in now.keys() - before]
    problems += [
        f"parameter {name}: shape {now[name]}, recorded with {before[name]}"
        for name in before.keys() & now
        if before[name] != now[name]
    ]
    if not problems and stored.names != given.names:
        problems.append("the parameters are in a different order")
    options = {field.name for field in fields(RunSpec)}
    problems += [
        f"{name}: {getattr(given, name)}, recorded with {getattr(stored, name)}"
        for name in options - {"names", "shapes", "total_steps"}
        if getattr(given, name) != getattr(stored, name)
    ]
    return sorted(problems)
