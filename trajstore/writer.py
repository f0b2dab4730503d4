"""Arrays in, store out: what a recorded run looks like on disk."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.commit import Commits
from trajstore.event_loop import EventLoop
from trajstore.layout import BLOCK, Layout
from trajstore.location import is_remote, locate, open_store
from trajstore.lock import PROTOTYPE, WriterLock
from trajstore.root_document import KEYFRAMES, read_root
from trajstore.rotation import n_blocks
from trajstore.schema import (
    FORMAT,
    FORMAT_VERSION,
    KEYFRAME_EVERY,
    ArraySpec,
    RunSpec,
    SchemaError,
    n_metric_columns,
    step_arrays,
    vector_array,
    window_arrays,
)

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

    Attributes
    ----------
    location : str
        As given.
    n_steps, n_windows : int
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
    ) -> None:
        self.location = locate(location)
        self._spec, self._size = spec, Layout(spec.names, spec.shapes).size
        self._loop = EventLoop()
        self._store = open_store(self.location, for_one_loop=True, fsync=fsync)
        self._lock: WriterLock | None = None
        self._commits = Commits(self._store, self._loop)
        self._metrics: list[str] = []
        self._snapshots: dict[str, dict[str, Any]] = {}
        self._resumes: list[dict[str, Any]] = []
        self._n_columns = n_metric_columns(0)
        self._has_final = False
        self._attributes: dict[str, object] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
        self.n_steps = self.n_windows = 0
        try:
            self._open(resume=resume, created=created)
        except BaseException:
            self.close()
            raise

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
            self._commits.declare(self._step_arrays() | self._window_arrays())
        self._attributes["status"] = "running"

    def _is_free(self) -> bool:
        if is_remote(self.location):
            return self._loop.run(self._store.is_empty(""))
        return not Path(self.location).exists()

    def _check_leftovers(self) -> None:
        """Refuse a directory that holds more than the beginning of a recording."""
        if is_remote(self.location):
            return
        ours = {name.partition("/")[0] for name in self._step_arrays()} | {"references"}
        names = {path.name for path in Path(self.location).iterdir()}
        foreign = sorted(name for name in names - ours if not name.startswith("."))
        if foreign:
            raise FileExistsError(
                f"{self.location} is not a trajectory store, but holds {foreign[:3]}. "
                "Choose another path."
            )

    def _continue(self, root: bytes, created: str | None) -> None:
        """Take up a store as its root document describes it."""
        attributes, arrays = read_root(root)
        found = RunSpec.from_json(attributes["spec"])
        if problems := spec_differences(found, self._spec):
            raise SchemaError(
                [
                    f"{self.location} is the recording of another run; differences:",
                    *problems,
                ]
            )
        if created not in {None, attributes["created"]}:
            problem = (
                f"{self.location} is a recording begun at {attributes['created']}; the "
                f"state is of one begun at {created}."
            )
            raise SchemaError([problem])
        if not is_remote(self.location):
            # A killed process leaves files that it was writing.
            for partial in Path(self.location).rglob("*.partial"):
                partial.unlink(missing_ok=True)
        self._metrics += attributes["metrics"]
        self._snapshots |= attributes["snapshots"]
        self._resumes += attributes["resumes"]
        self._attributes["created"] = attributes["created"]
        self._n_columns = n_metric_columns(len(self._metrics))
        vectors = [snapshot["array"] for snapshot in self._snapshots.values()]
        vectors += ["final"] if "final" in arrays else []
        specs = self._step_arrays() | self._window_arrays()
        specs |= dict.fromkeys(vectors, vector_array(self._size))
        self._commits.continue_from(
            specs, {name: arrays[name]["shape"][0] for name in specs}
        )
        self.n_steps = arrays["epoch"]["shape"][0]
        self.n_windows = arrays["references/start"]["shape"][0]
        self._has_final = "final" in arrays

    def _step_arrays(self) -> dict[str, ArraySpec]:
        arrays = step_arrays(
            self._spec,
            size=self._size,
            n_metrics=n_metric_columns(0),
            n_blocks=n_blocks(self._spec.sketch_bits),
        )
        # Names that were logged late have widened the array, not its chunks.
        arrays["scalars"] = replace(arrays["scalars"], inner=(self._n_columns,))
        return arrays

    def _window_arrays(self) -> dict[str, ArraySpec]:
        return window_arrays(self._spec, size=self._size, block=BLOCK)

    @property
    def snapshots(self) -> dict[str, int]:
        """The step before which each snapshot was taken, by name."""
        return {name: found["step"] for name, found in self._snapshots.items()}

    @property
    def created(self) -> str:
        """When the recording began; tells stores apart."""
        return str(self._attributes["created"])

    def read(self, name: str, rows: slice) -> Array:
        """Read rows of an array that were committed."""
        return self._commits.read(name, rows)

    def last_scalar(self, name: str) -> float:
        """Return a scalar of the last row, 0 if it has none of that name."""
        if name not in self._metrics or self.n_steps == 0:
            return 0.0
        row = self.read("scalars", slice(self.n_steps - 1, self.n_steps))[0]
        return float(np.nan_to_num(row[self._metrics.index(name)]))

    def rewind(self, n_steps: int, snapshots: Iterable[str]) -> None:
        """Forget what came after a step, and the end of the run; is committed.

        Parameters
        ----------
        n_steps : int
            How many steps are kept, at most.
        snapshots : iterable of str
            Names of the snapshots that are kept.
        """
        n_steps = min(n_steps, self.n_steps)
        starts = self.read("references/start", slice(0, self.n_windows))
        self.n_windows = int(np.searchsorted(starts, n_steps))
        self.n_steps = n_steps
        n_keyframes = -(-self.n_windows // KEYFRAME_EVERY)
        lengths = dict.fromkeys(self._step_arrays(), n_steps)
        lengths |= dict.fromkeys(self._window_arrays(), self.n_windows)
        lengths[KEYFRAMES] = n_keyframes
        self._commits.continue_from({}, lengths)
        kept = set(snapshots)
        for name in [name for name in self._snapshots if name not in kept]:
            self._commits.remove(self._snapshots.pop(name)["array"])
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

    def append_missing(self, places: npt.NDArray[np.int32]) -> None:
        """Write rows of steps of which nothing is known but their places.

        Parameters
        ----------
        places : numpy.ndarray
            int32, (step, 3): epoch, iteration and window.
        """
        known = dict(zip(("epoch", "iteration", "window"), places.T, strict=True))
        rows = {
            name: np.full(
                (len(places), *array.inner),
                np.nan if array.dtype.startswith("float") else 0,
                array.dtype,
            )
            for name, array in self._step_arrays().items()
        }
        del rows["scalars"]
        self.append_rows(rows | known, [{}] * len(places))

    def append_rows(
        self,
        rows: Mapping[str, Array],
        scalars: Sequence[Mapping[str, float]],
        first: int | None = None,
    ) -> None:
        """Write optimizer steps.

        Parameters
        ----------
        rows : mapping from str to numpy.ndarray
            Every array of `trajstore.schema.step_arrays` but the scalars, with the same
            number of rows.
        scalars : sequence of mapping from str to float
            The scalars of each row; a name that a row lacks reads as NaN.
        first : int, optional
            Step of the first row; default: the one behind the last. Steps that were
            written before are left as they are.
        """
        known = 0 if first is None else self.n_steps - first
        assert known >= 0
        rows = {name: values[known:] for name, values in rows.items()}
        scalars = scalars[known:]
        self.n_steps += len(scalars)
        self._register(name for row in scalars for name in row)
        table = np.full((len(scalars), self._n_columns), np.nan)
        for i, row in enumerate(scalars):
            for name, value in row.items():
                table[i, self._metrics.index(name)] = value
        self._commits.append({**rows, "scalars": table})

    def amend_last(self, scalars: Mapping[str, float]) -> None:
        """Set scalars of the last row."""
        self._register(scalars)
        columns = {self._metrics.index(name): v for name, v in scalars.items()}
        self._commits.amend_last("scalars", columns)

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
        numbers = [int(s["array"].partition("/")[2]) for s in self._snapshots.values()]
        key = f"snapshots/{max(numbers, default=-1) + 1}"
        if name in self._snapshots:
            key = self._snapshots[name]["array"]
        self._write_vector(key, read)
        self._snapshots[name] = {"array": key, "step": step}

    def write_final(self, read: Callable[[slice], Array], *, status: str) -> None:
        """Write the last iterate and say how the run ended."""
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
                "metrics": self._metrics,
                "snapshots": self._snapshots,
                "resumes": self._resumes,
            }
        )

    def _register(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._metrics:
                self._metrics.append(name)
        columns = n_metric_columns(len(self._metrics))
        if columns > self._n_columns:
            self._commits.widen("scalars", columns)
            self._n_columns = columns


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
