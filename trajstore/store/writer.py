"""Arrays in, store out: what a recorded run looks like on disk."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import (
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
from trajstore.format.run_spec import RunSpec, SchemaError
from trajstore.store.commit import Commits
from trajstore.store.event_loop import EventLoop
from trajstore.store.location import is_remote, locate, open_store
from trajstore.store.lock import PROTOTYPE, WriterLock
from trajstore.store.row_table import RowTable

Array = npt.NDArray[Any]


class Window(NamedTuple):
    """A window as the store keeps it.

    Attributes
    ----------
    start : int
        First optimizer step.
    codes, scales : numpy.ndarray
        int8 (param,) and float32 (block,): the coded difference to the reference before.
    weights : numpy.ndarray
        float32, (layer,).
    arrival : numpy.ndarray
        float32, (layer, coordinate).
    probes : numpy.ndarray
        float64, (probe,); empty if the recording is exact.
    keyframe : numpy.ndarray or None
        The decoded reference, float32 (param,), in every `KEYFRAME_EVERY`-th window.
    """

    start: int
    codes: Array
    scales: Array
    weights: Array
    arrival: Array
    probes: Array
    keyframe: Array | None


class Writer:
    """Writes one run; not thread-safe.

    Parameters
    ----------
    location : str or os.PathLike
        Path or URL of the store; created.
    spec : RunSpec
        What is recorded.
    resume : bool, default: False
        Go on with a store that is there, if one is.
    created : str, optional
        Which recording to resume; see `created`.
    fsync : bool, default: False
        Whether commits survive a loss of power.
    attrs : mapping, default: {}
        What the user wants to find again in the store, serialisable to JSON. Of a store
        that is resumed the names given here are replaced.

    Attributes
    ----------
    location : str
        As given.
    steps : RowTable
        The rows of optimizer steps.
    measurements : dict from str to RowTable
        The rows of measurements, by name; see `measurement`.
    n_windows : int
        How many have been written.

    Raises
    ------
    FileExistsError
        If there is something at `location` that is not to be resumed.
    FileNotFoundError
        If there is no recording at `location`, and `created` says that there was one.
    StoreLockedError
        If another process writes the store.
    SchemaError
        If the store cannot be resumed: it is damaged, or of another `spec`.
    """

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
        self._store = open_store(self.location, for_one_loop=True, fsync=fsync)
        self._lock: WriterLock | None = None
        self._commits = Commits(self._store, self._loop)
        self.steps = RowTable(self._commits, spec)
        self.measurements: dict[str, RowTable] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._resumes: list[dict[str, Any]] = []
        self._attrs: dict[str, Any] = {}
        self._has_final = False
        self._attributes: dict[str, object] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
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
                f"{self.location} exists already. A recording never overwrites another: "
                "choose a new path, resume the recording, or delete it first."
            )
        if is_free and created is not None:
            raise FileNotFoundError(
                f"There is nothing at {self.location}, where a recording begun at "
                f"{created} is to be resumed."
            )
        if is_free and not is_remote(self.location):
            Path(self.location).mkdir(parents=True)
        self._lock = WriterLock(self.location, self._store)
        self._loop.run(self._lock.acquire())
        root = self._loop.run(self._store.get("zarr.json", PROTOTYPE))
        if root is not None:
            self._continue(root.to_bytes(), created)
        else:
            self._check_leftovers()
            self._remove_partial_files()
            self._commits.declare(self.steps.arrays | self._window_arrays())
        self._attributes["status"] = "running"

    def _is_free(self) -> bool:
        if is_remote(self.location):
            return self._loop.run(self._store.is_empty(""))
        return not Path(self.location).exists()

    def _remove_partial_files(self) -> None:
        """Remove what a killed process was writing."""
        if not is_remote(self.location):
            for partial in Path(self.location).rglob("*.partial"):
                partial.unlink(missing_ok=True)

    def _check_leftovers(self) -> None:
        """Refuse a directory that holds more than the beginning of a recording."""
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
        """Take up a store as its root document describes it."""
        document = parse_document(root)
        if problems := spec_differences(document.spec, self._spec):
            raise SchemaError(
                [
                    f"{self.location} is the recording of another run; differences:",
                    *problems,
                ]
            )
        if created not in {None, document.created}:
            problem = (
                f"{self.location} is a recording begun at {document.created}; the "
                f"state is of one begun at {created}."
            )
            raise SchemaError([problem])
        self._remove_partial_files()
        self._snapshots |= document.snapshots
        self._resumes += map(dict, document.resumes)
        self._attrs |= document.attrs
        self._attributes["created"] = document.created
        self.steps = self._table(document, document.steps)
        for name, group in document.measurements.items():
            self.measurements[name] = self._table(document, group)
        specs = self.steps.arrays | self._window_arrays()
        for table in self.measurements.values():
            specs |= table.arrays
        vectors = [snapshot.array for snapshot in self._snapshots.values()]
        vectors += ["final"] if document.has_final else []
        specs |= dict.fromkeys(vectors, vector_array(self._size))
        lengths = {path: document.arrays[path].length for path in specs}
        self._commits.continue_from(specs, lengths)
        self.n_windows = document.n_windows
        self._has_final = document.has_final

    def _table(self, document: Document, group: RowGroup) -> RowTable:
        return RowTable(
            self._commits,
            self._spec,
            group.path,
            metrics=group.metrics,
            n_rows=document.n_rows(group),
        )

    def _window_arrays(self) -> dict[str, ArraySpec]:
        return window_arrays(self._spec, size=self._size, block=BLOCK)

    @property
    def n_steps(self) -> int:
        """How many optimizer steps have been written."""
        return self.steps.n_rows

    @property
    def snapshots(self) -> dict[str, int]:
        """The step before which each snapshot was taken, by name."""
        return {name: found.step for name, found in self._snapshots.items()}

    @property
    def created(self) -> str:
        """When the recording began; tells stores apart."""
        return str(self._attributes["created"])

    def read(self, name: str, rows: slice) -> Array:
        """Read rows of an array that were committed."""
        return self._commits.read(name, rows)

    def measurement(self, name: str) -> RowTable:
        """Return the table of a measurement, a new one if there was none of that name."""
        if name not in self.measurements:
            group = f"measurements/{len(self.measurements)}"
            self.measurements[name] = RowTable(self._commits, self._spec, group)
            self._commits.declare(self.measurements[name].arrays)
        return self.measurements[name]

    def rewind(
        self,
        n_steps: int,
        *,
        snapshots: Iterable[str],
        measured: Mapping[str, int],
    ) -> None:
        """Forget what came after a step, and the end of the run; is committed.

        Parameters
        ----------
        n_steps : int
            How many steps are kept, at most.
        snapshots : iterable of str
            Names of the snapshots that are kept.
        measured : mapping from str to int
            How many rows of each measurement are kept; none of those not named.
        """
        n_steps = min(n_steps, self.n_steps)
        starts = self.read("references/start", slice(0, self.n_windows))
        self.n_windows = int(np.searchsorted(starts, n_steps))
        lengths = dict.fromkeys(self._window_arrays(), self.n_windows)
        lengths[KEYFRAMES] = n_keyframes(self.n_windows)
        self.steps.n_rows = n_steps
        for name, table in self.measurements.items():
            table.n_rows = min(table.n_rows, measured.get(name, 0))
        for table in (self.steps, *self.measurements.values()):
            lengths |= dict.fromkeys(table.arrays, table.n_rows)
        self._commits.continue_from({}, lengths)
        kept = set(snapshots)
        for name in [name for name in self._snapshots if name not in kept]:
            self._commits.remove(self._snapshots.pop(name).array)
        if self._has_final:
            self._commits.remove("final")
            self._has_final = False
        # Before anything is written in the place of what is forgotten.
        self.commit()

    def note_resumption(self, step: int) -> None:
        """Keep in the store that the recording was resumed, and what it lacks.

        Parameters
        ----------
        step : int
            The next optimizer step.
        """
        n_missing = step - self.n_steps
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._resumes.append({"step": step, "n_missing": n_missing, "at": now})

    def append_window(self, window: Window) -> None:
        """Write the start of a window."""
        self.n_windows += 1
        if window.keyframe is not None:
            self._commits.append_large("references/keyframes", window.keyframe)
        self._commits.append_large("references/codes", window.codes)
        self._commits.append(
            {
                "references/start": np.array([window.start]),
                "references/scales": window.scales[None],
                "references/weights": window.weights[None],
                "references/arrival": window.arrival[None],
                "references/probes": window.probes[None],
            }
        )

    def write_snapshot(
        self, name: str, step: int, read: Callable[[slice], Array]
    ) -> None:
        """Write an iterate in full precision, taken before optimizer step `step`."""
        numbers = [int(s.array.partition("/")[2]) for s in self._snapshots.values()]
        key = f"snapshots/{max(numbers, default=-1) + 1}"
        if name in self._snapshots:
            key = self._snapshots[name].array
        self._write_vector(key, read)
        self._snapshots[name] = Snapshot(key, step)

    def write_final(
        self, read: Callable[[slice], Array] | None, *, status: str
    ) -> None:
        """Write the last iterate, if it is known, and say how the run ended."""
        if read is not None:
            self._write_vector("final", read)
            self._has_final = True
        self._attributes["status"] = status

    def _write_vector(self, key: str, read: Callable[[slice], Array]) -> None:
        self._commits.write_vector(key, vector_array(self._size), self._size, read)

    def close(self) -> None:
        """Let others see that nobody writes any more."""
        if self._lock is not None:
            self._loop.run(self._lock.release())
            self._lock = None
        self._loop.close()

    def commit(self) -> None:
        """Make everything written so far visible to readers.

        Raises
        ------
        StoreLockedError
            If the store is not this writer's any more.
        """
        assert self._lock is not None
        self._loop.run(self._lock.confirm())
        self._commits.commit(
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
        )


def spec_differences(stored: RunSpec, given: RunSpec) -> list[str]:
    """List what keeps a recording from being resumed with another description.

    A run may get longer: ``total_steps`` may differ.

    Parameters
    ----------
    stored : RunSpec
        Of the recording.
    given : RunSpec
        Of the model and options that would go on with it.

    Returns
    -------
    list of str
        One line for each difference.
    """
    before = dict(zip(stored.names, stored.shapes, strict=True))
    now = dict(zip(given.names, given.shapes, strict=True))
    problems = [f"parameter {name}: not there any more" for name in before.keys() - now]
    problems += [f"parameter {name}: new" for name in now.keys() - before]
    problems += [
        f"parameter {name}: shape {now[name]}, recorded with {before[name]}"
        for name in before.keys() & now
        if before[name] != now[name]
    ]
    if not problems and stored.names != given.names:
        problems.append("the parameters are in another order")
    options = {field.name for field in fields(RunSpec)}
    problems += [
        f"{name}: {getattr(given, name)}, recorded with {getattr(stored, name)}"
        for name in options - {"names", "shapes", "total_steps"}
        if getattr(given, name) != getattr(stored, name)
    ]
    return sorted(problems)
