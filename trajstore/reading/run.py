"""Store in, lazy datasets and parameter vectors out."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from trajstore.format.arrays import (
    DESCRIPTIONS,
    KEYFRAME_EVERY,
    KEYFRAMES,
    LAYER,
    NO_SAMPLE,
    SAMPLES,
    STEP,
    UPDATE_TABLE,
    first_sign_number,
    table_columns,
)
from trajstore.format.layout import BLOCK, Layout
from trajstore.format.run_spec import RunSpec, SchemaError
from trajstore.reading.epochs import index_epochs
from trajstore.reading.lazy_rows import lazy_rows
from trajstore.reading.version import Moment, as_it_was, n_resumes
from trajstore.sketch import deltas
from trajstore.sketch.probes import Probes
from trajstore.sketch.sketch import Sketch
from trajstore.store.chunks import CheckedStore, ChunkError, Read, open_array, read_part
from trajstore.store.location import locate, open_store
from trajstore.store.lock import is_written
from trajstore.store.opening import open_checked

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]

CHUNKS: Final = 32
"""Chunks of rows that a run keeps; 2 MB each."""

VECTOR_PARTS: Final = 4
"""Parts of iterates that a run keeps; 16 MB each in the analyses."""

DECODED_PARTS: Final = 16
"""Parts of references that a run keeps decoded; 16 MB each in the analyses."""

REOPENED: Final = 4
"""Runs that a process keeps open which it was sent by others."""

BOTH_LOST: Final = (
    "chunks of both 'references/start' and 'window' are damaged, so that nothing tells "
    "which steps belong to which window"
)


@dataclass(frozen=True, slots=False, eq=False)
class Run:
    """A recorded run, as it stood when it was opened.

    Open one with `open_run`; open it again to see what has been recorded since.

    Attributes
    ----------
    location : str
        Path or URL of the store.
    store : CheckedStore
        The storage, read-only.
    attributes : mapping
        What the store says of itself, decoded JSON.
    documents : mapping from str to mapping
        Metadata of every array, by its path in the store.
    is_written : bool
        Whether a process was writing the store.
    """

    location: str
    store: CheckedStore
    attributes: Mapping[str, Any]
    documents: Mapping[str, Any]
    is_written: bool
    _reported: set[str] = field(default_factory=set, repr=False)

    def __repr__(self) -> str:
        return (
            f"<trajstore.Run {self.location!r}: {self.n_steps} steps, "
            f"{self.layout.n_params} parameters, {self.status}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers open the store themselves: what travels is a few hundred bytes.
        return _reopen, (self.location, self._moment)

    @property
    def _moment(self) -> Moment:
        return Moment(
            created=self.attributes["created"],
            n_resumes=n_resumes(self.attributes),
            n_steps=self.n_steps,
            n_windows=self.n_windows,
            n_metrics=len(self.attributes["metrics"]),
            n_snapshots=len(self.snapshots),
            n_measured=tuple(
                (self.measured(name).n_steps, len(found["metrics"]))
                for name, found in self.attributes["measurements"].items()
            ),
            has_final=self.has_final,
            is_written=self.is_written,
            status=self.attributes["status"],
        )

    @cached_property
    def spec(self) -> RunSpec:
        """What was known when the recording began."""
        return RunSpec.from_json(self.attributes["spec"])

    @cached_property
    def layout(self) -> Layout:
        """Places of the parameter tensors in flat vectors."""
        return Layout(self.spec.names, self.spec.shapes)

    @property
    def status(self) -> str:
        """How the run ended: ``running``, ``complete``, ``failed`` or ``interrupted``.

        A run has failed if it was closed after an exception, and was interrupted if it
        was killed: nobody writes to the store any more, and it was never closed.
        """
        status: str = self.attributes["status"]
        return "interrupted" if status == "running" and not self.is_written else status

    @property
    def n_steps(self) -> int:
        """Number of recorded optimizer steps."""
        return int(self.documents[self.path("epoch")]["shape"][0])

    @cached_property
    def step_numbers(self) -> npt.NDArray[np.int64]:
        """How many optimizer steps preceded each, int64 of shape (step,)."""
        return np.arange(self.n_steps)

    @cached_property
    def sign_numbers(self) -> npt.NDArray[np.int64]:
        """What selects the random signs of every step, int64 of shape (step,)."""
        return np.arange(self.n_steps)

    @property
    def metrics(self) -> list[str]:
        """Names of the recorded scalars."""
        return list(self.attributes["metrics"])

    def path(self, name: str) -> str:
        """Return the path in the store of an array with a row for every step."""
        return name

    @property
    def n_epochs(self) -> int:
        """Number of epochs that have begun."""
        return int(self.epochs[-1]) + 1 if self.n_steps else 0

    @property
    def n_windows(self) -> int:
        """Number of windows, each with a reference point."""
        return int(self.documents["references/start"]["shape"][0])

    @property
    def has_final(self) -> bool:
        """Whether the run was closed, so that its last iterate is stored."""
        return "final" in self.documents

    @property
    def snapshots(self) -> tuple[str, ...]:
        """Names of the stored snapshots."""
        return tuple(self.attributes["snapshots"])

    @property
    def attrs(self) -> dict[str, Any]:
        """What was given to the recorder to be found here."""
        return dict(self.attributes["attrs"])

    @property
    def measurements(self) -> tuple[str, ...]:
        """Names of the measurements, see `measured`."""
        return tuple(self.attributes["measurements"])

    def measured(self, name: str) -> "MeasuredRun":
        """Return the rows of a measurement as a run.

        Parameters
        ----------
        name : str
            As given to `trajstore.Recorder.measure`, or ``"update"`` if updates were
            recorded: x_(k+1) - x_k takes the place of the gradient then.

        Returns
        -------
        MeasuredRun
            Its steps are the rows; analyses take it like any run. Rows of the same
            optimizer step have the same ``step``, ``epoch`` and ``iteration``.

        Raises
        ------
        KeyError
            If there is no such measurement; says which there are.
        """
        if name not in self.measurements:
            raise KeyError(
                f"No measurement {name!r} in {self.location}; it has "
                f"{list(self.measurements)}. They are made by recorder.measure(name) "
                "during training, and 'update' by Recorder(..., updates=True)."
            )
        shared = {field.name: getattr(self, field.name) for field in fields(Run)}
        return MeasuredRun(**shared, whole=self, name=name)

    @cached_property
    def epochs(self) -> npt.NDArray[np.int32]:
        """Epoch of every step, int32 of shape (step,); -1 where that is lost."""
        return self._read_rows("epoch", slice(0, self.n_steps)).values

    @cached_property
    def iterations(self) -> npt.NDArray[np.int32]:
        """Steps of its epoch before every step, int32 of shape (step,); -1 if lost."""
        return self._read_rows("iteration", slice(0, self.n_steps)).values

    @cached_property
    def steps(self) -> xr.Dataset:
        """Scalars and tables of every step.

        Returns
        -------
        xarray.Dataset
            Lazy: values are read where they are used. Dimension ``step`` with the
            coordinates ``step``, ``epoch``, ``iteration`` and ``window``, selectable by
            the first three (`trajstore.index_epochs`); one float64
            variable per scalar, NaN where it was not logged, and float32 tables with
            the further dimension ``layer``, whose labels are the parameter names, and
            ``basis``. NaN where a chunk is damaged, with one warning for each chunk. A run
            that was recorded with ``basis=0`` has no ``param_norm``, ``param_sq``,
            ``grad_dot_param``, ``grad_dot_basis`` and ``displacement_dot_basis``.
        """
        stored = xr.Dataset(
            {
                name: (
                    self.documents[self.path(name)]["dimension_names"],
                    lazy_rows(self, name),
                )
                for name in ("window", "scalars", "tables")
            }
        )
        variables = {
            name: stored["scalars"].isel(metric=i, drop=True)
            for i, name in enumerate(self.metrics)
        }
        for name, columns in table_columns(self.spec).items():
            if columns.start == columns.stop:
                continue
            table = stored["tables"].isel(quantity=columns)
            variables[name] = (
                table.rename(quantity="basis")
                if name.endswith("_basis")
                else table.isel(quantity=0, drop=True)
            )
        for name, variable in variables.items():
            long_name, units = DESCRIPTIONS.get(name, (name, "1"))
            variable.attrs = {"long_name": long_name, "units": units}
        coordinates = {
            STEP: self.step_numbers,
            LAYER: list(self.spec.names),
            "epoch": (STEP, self.epochs),
            "iteration": (STEP, self.iterations),
            "window": stored["window"].variable,
        }
        dataset = xr.Dataset(variables).assign_coords(coordinates)
        dataset = dataset.assign_attrs(status=self.status, location=self.location)
        return index_epochs(dataset)

    @cached_property
    def samples(self) -> xr.DataArray:
        """Indices of the examples in the batch of every step.

        Returns
        -------
        xarray.DataArray
            Lazy: values are read where they are used. int64, dimensions ``step`` and
            ``sample``, coordinates like those of `steps`; -1 where a batch has fewer
            examples, where none were logged, and where a chunk is damaged.

        Raises
        ------
        ValueError
            If they were not recorded.
        """
        if self.path(SAMPLES) not in self.documents:
            raise ValueError(
                f"The indices of examples are not recorded in {self.location}; record "
                "with Recorder(..., samples=batch_size) and "
                "recorder.log_samples(indices)."
            )
        rows = xr.Variable((STEP, "sample"), lazy_rows(self, SAMPLES))
        coordinates = {
            STEP: self.step_numbers,
            "epoch": (STEP, self.epochs),
            "iteration": (STEP, self.iterations),
        }
        return index_epochs(xr.Dataset({SAMPLES: rows}, coordinates))[SAMPLES]

    @cached_property
    def windows(self) -> xr.Dataset:
        """What is known of every window besides its reference.

        Returns
        -------
        xarray.Dataset
            Loaded. ``start``, the first optimizer step, and ``stop``, the one after the
            last; ``weights`` (window, layer), the weights of the sketch; ``probes``
            (window, probe), the probes of the reference. NaN where a chunk is damaged.

        Raises
        ------
        SchemaError
            If the first steps are no such numbers, or are lost.
        """
        start, every = self.starts, slice(0, self.n_windows)
        stop = np.minimum(np.append(start[1:], self.n_steps), self.n_steps)
        weights = self._read_rows("references/weights", every).values
        probes = self._read_rows("references/probes", every).values
        return xr.Dataset(
            {
                "start": ("window", start),
                "stop": ("window", np.maximum(stop, start)),
                "weights": (("window", LAYER), weights),
                "probes": (("window", "probe"), probes),
            },
            coords={"window": np.arange(len(start)), LAYER: list(self.spec.names)},
        )

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """First step of every window, int64 of shape (window,).

        Raises
        ------
        SchemaError
            If the numbers do not grow from 0, or are lost.
        """
        start = self._read("references/start", slice(0, self.n_windows))
        values = start.values
        if start.missing is not None:
            window = self._read("window", slice(0, self.n_steps))
            if window.missing is not None:
                raise SchemaError([self._problem(BOTH_LOST)])
            values = np.searchsorted(window.values, np.arange(self.n_windows))
        if len(values) and (values[0] != 0 or (np.diff(values) < 0).any()):
            problem = f"references/start: expected steps from 0 upwards, got {values}"
            raise SchemaError([self._problem(problem)])
        return values

    def _problem(self, problem: str) -> str:
        return f"{self.location}: {problem}. See traj-store verify {self.location}"

    @cached_property
    def epoch_windows(self) -> dict[int, int]:
        """Windows that begin with an epoch, by epoch."""
        start = self.windows["start"].values
        start = start[start < self.n_steps]
        epochs = self.epochs[start]
        begins = self.iterations[start] == 0
        return {int(epochs[c]): int(c) for c in np.flatnonzero(begins)}

    @cached_property
    def sketch(self) -> Sketch:
        """How the gradients of the first window were sketched."""
        spec = self.spec
        return Sketch(size=self.layout.size, bits=spec.sketch_bits, seed=spec.seed)

    def sketch_of(self, window: int) -> Sketch:
        """Return how the gradients of a window were sketched."""
        return replace(self.sketch, window=window)

    @cached_property
    def probes(self) -> Probes:
        """How gradients and displacements were probed."""
        return Probes(fold=self.sketch.fold, count=self.spec.probes)

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        return {
            name: open_array(self.store, name, document)
            for name, document in self.documents.items()
        }

    def array(self, name: str) -> Any:
        """Return an array of the store by its path in it, a `zarr.Array`.

        Parameters
        ----------
        name : str
            Path of the array in the store, or name of one with a row for every step.

        Returns
        -------
        zarr.Array
            Raises `trajstore.store.chunks.ChunkError` or `ValueError` where it is read and a
            chunk is damaged.
        """
        return self._arrays[self.path(name)]

    def rows(self, name: str, rows: slice) -> Array:
        """Read rows of an array with one row for each step or window.

        Parameters
        ----------
        name : str
            Path of the array in the store.
        rows : slice
            Which rows. Those of the same chunks are kept for the next call.

        Returns
        -------
        numpy.ndarray
            Read-only. Of damaged chunks NaN, 0 in an array of integers, or -1 in
            ``samples``; `is_missing` tells these from others.
        """
        return self._around(name, rows, lambda chunk: chunk.values)

    def is_missing(self, name: str, rows: slice) -> npt.NDArray[np.bool_]:
        """Tell which rows of an array are lost, at least in part.

        Parameters
        ----------
        name : str
            Path of the array in the store.
        rows : slice
            Which rows.

        Returns
        -------
        numpy.ndarray
            bool, shape ``(row,)``.
        """
        return self._around(name, rows, _missing_rows)

    def _around(self, name: str, rows: slice, of: Callable[[Read], Array]) -> Array:
        """Put together what is asked of some chunks, and cut the rows out."""
        n = self.array(name).chunks[0]
        chunks = range(rows.start // n, max(rows.start // n + 1, -(-rows.stop // n)))
        parts = [of(self._chunk(name, c)) for c in chunks]
        around = parts[0] if len(parts) == 1 else np.concatenate(parts)
        first = chunks.start * n
        return around[rows.start - first : rows.stop - first]

    @cached_property
    def _chunk(self) -> Callable[[str, int], Read]:
        return lru_cache(maxsize=CHUNKS)(self._read_chunk)

    def _read_chunk(self, name: str, index: int) -> Read:
        array = self.array(name)
        n = array.chunks[0]
        rows = slice(*(min(i * n, array.shape[0]) for i in (index, index + 1)))
        return self._read_rows(name, rows)

    def _read_rows(self, name: str, rows: slice) -> Read:
        """Read whole rows; what follows from other arrays is not lost."""
        read = self._read(name, rows)
        if read.missing is not None and name in {"epoch", "iteration", "window"}:
            steps = np.arange(rows.start, rows.stop)[read.missing]
            read.values[read.missing] = self._derived(name, steps)
        if read.missing is not None and name == SAMPLES:
            read.values[read.missing] = NO_SAMPLE
        read.values.flags.writeable = False
        return read

    def _derived(self, name: str, steps: Array) -> Array | int:
        """Compute where steps belong; -1 where nothing tells."""
        per_epoch = self.spec.steps_per_epoch
        if name == "window":
            start = self._read("references/start", slice(0, self.n_windows))
            if start.missing is not None:
                return -1
            return np.searchsorted(start.values, steps, side="right") - 1
        if per_epoch is None:
            return -1
        return steps // per_epoch if name == "epoch" else steps % per_epoch

    def _read(self, name: str, *part: slice) -> Read:
        """Read a part of an array, whole in the other dimensions; warn of damage."""
        array = self.array(name)
        others = tuple(slice(0, n) for n in array.shape[len(part) :])
        read = read_part(array, (*part, *others))
        self._report(read.errors)
        return read

    def _report(self, errors: Iterable[ChunkError]) -> None:
        for error in errors:
            if error.key not in self._reported:
                self._reported.add(error.key)
                text = self._problem(f"{error}; what it held reads as NaN")
                warnings.warn(text, UserWarning, stacklevel=2)

    def vector(self, name: str, elements: slice) -> FloatArray:
        """Read a part of an iterate; the last few parts are kept for the next call.

        Parameters
        ----------
        name : str
            Path of the array in the store: ``final``, ``snapshots/0`` and so on.
        elements : slice
            Part of the flat vector.

        Returns
        -------
        numpy.ndarray
            float32, shape ``(part,)``, read-only. NaN where a chunk is damaged.
        """
        return self._part(name, elements.start, elements.stop)

    @cached_property
    def _part(self) -> Callable[[str, int, int], FloatArray]:
        return lru_cache(maxsize=VECTOR_PARTS)(self._read_part)

    def _read_part(self, name: str, start: int, stop: int) -> FloatArray:
        values: FloatArray = self._read(name, slice(start, stop)).values
        values.flags.writeable = False
        return values

    def large_rows(self, name: str, rows: slice, elements: slice) -> FloatArray:
        """Read parts of the vectors that an exact recording keeps of each step.

        Parameters
        ----------
        name : str
            ``gradient`` or ``displacement``.
        rows : slice
            Steps.
        elements : slice
            Part of the flat vectors.

        Returns
        -------
        numpy.ndarray
            float32, shape ``(step, part)``. NaN where a chunk is damaged.
        """
        values: FloatArray = self._read(name, rows, elements).values
        return values

    def reference(self, window: int, elements: slice) -> FloatArray:
        """Decode a part of the reference point of a window.

        Parameters
        ----------
        window : int
            Which window. Cheap where those before were decoded lately: a few are kept.
        elements : slice
            Part of the flat vector, between multiples of `trajstore.format.layout.BLOCK`.

        Returns
        -------
        numpy.ndarray
            float32, shape ``(part,)``, read-only: the vector that training computed
            with, bit for bit. NaN where a chunk is damaged that it rests on, of those
            since the last keyframe.
        """
        return self._decoded(window, elements.start, elements.stop)

    @cached_property
    def _decoded(self) -> Callable[[int, int, int], FloatArray]:
        return lru_cache(maxsize=DECODED_PARTS)(self._decode)

    def _decode(self, window: int, start: int, stop: int) -> FloatArray:
        is_keyframe = window % KEYFRAME_EVERY == 0
        before = None if is_keyframe else self._decoded(window - 1, start, stop)
        reference = np.empty(stop - start, np.float32)
        self._decode_after(before, window, slice(start, stop), out=reference)
        reference.flags.writeable = False
        return reference

    def references(
        self, windows: range, elements: slice, buffers: Sequence[FloatArray]
    ) -> Iterator[FloatArray]:
        """Decode a part of the reference points of successive windows.

        Parameters
        ----------
        windows : range
            Which windows. What lies between the keyframe before and the first of them
            has to be decoded as well.
        elements : slice
            Part of the flat vector, between multiples of `trajstore.format.layout.BLOCK`.
        buffers : sequence of numpy.ndarray
            At least two, float32 of shape ``(part,)``, to be used in turn.

        Yields
        ------
        numpy.ndarray
            What `reference` returns, window by window, each in the next buffer.
        """
        before = None
        for window in range(
            windows.start - windows.start % KEYFRAME_EVERY, windows.stop
        ):
            reference = buffers[window % len(buffers)]
            self._decode_after(before, window, elements, out=reference)
            if window >= windows.start:
                yield reference
            before = reference

    def _decode_after(
        self,
        before: FloatArray | None,
        window: int,
        elements: slice,
        *,
        out: FloatArray,
    ) -> None:
        """Decode a part of a reference, given the one before it."""
        keyframe, since = divmod(window, KEYFRAME_EVERY)
        if since == 0:
            row = slice(keyframe, keyframe + 1)
            out[:] = self._read(KEYFRAMES, row, elements).values[0]
            return
        assert before is not None
        row = slice(window, window + 1)
        codes = self._read("references/codes", row, elements)
        scales = self.rows("references/scales", row)[0]
        scales = scales[elements.start // BLOCK : elements.stop // BLOCK]
        deltas.move(before, codes.values[0], scales, out=out)
        if codes.missing is not None:
            out[codes.missing[0]] = np.nan


@dataclass(frozen=True, slots=False, eq=False, repr=False, kw_only=True)
class MeasuredRun(Run):
    """The rows of a measurement in the place of a run's steps; see `Run.measured`.

    Attributes
    ----------
    whole : Run
        The run that the measurement belongs to.
    name : str
        Of the measurement.
    """

    whole: Run
    name: str

    def __repr__(self) -> str:
        return (
            f"<trajstore.MeasuredRun {self.name!r} of {self.location!r}: "
            f"{self.n_steps} rows>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _measured, (self.whole, self.name)

    @property
    def _found(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.attributes["measurements"][self.name]
        return found

    def path(self, name: str) -> str:
        """Return the path in the store of an array with a row for every step."""
        path = f"{self._found['group']}/{name}"
        return path if path in self.documents else name

    @property
    def metrics(self) -> list[str]:
        """Names of the recorded scalars."""
        return list(self._found["metrics"])

    @cached_property
    def step_numbers(self) -> npt.NDArray[np.int64]:
        """How many optimizer steps preceded each row, int64 of shape (step,)."""
        return self._read_rows(STEP, slice(0, self.n_steps)).values

    @cached_property
    def sign_numbers(self) -> npt.NDArray[np.int64]:
        """What selects the random signs of every row, int64 of shape (step,)."""
        first = first_sign_number(self.measurements.index(self.name))
        return first + np.arange(self.n_steps)

    @cached_property
    def steps(self) -> xr.Dataset:
        """Scalars and tables of every row; see `Run.steps`."""
        return super().steps.drop_vars([*UPDATE_TABLE, "update_norm"], errors="ignore")

    @cached_property
    def samples(self) -> xr.DataArray:
        """Refuse to name examples: measurements do not carry their indices.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError(
            f"The measurement {self.name!r} of {self.location} has no indices of "
            "examples; those of steps are in `samples` of the run itself."
        )

    @cached_property
    def epoch_windows(self) -> dict[int, int]:
        """Windows that begin with an epoch, by epoch."""
        return self.whole.epoch_windows

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """First row of every window, int64 of shape (window,).

        Raises
        ------
        SchemaError
            If the rows do not say which window they belong to.
        """
        window = self._read("window", slice(0, self.n_steps))
        if window.missing is not None or (np.diff(window.values) < 0).any():
            problem = (
                f"{self.path('window')}: damaged, so that nothing tells which rows "
            )
            raise SchemaError([self._problem(f"{problem}belong to which window")])
        return np.searchsorted(window.values, np.arange(self.n_windows))

    def _derived(self, name: str, steps: Array) -> Array | int:
        """Where rows belong does not follow from their numbers."""
        del name, steps
        return -1


def _measured(whole: Run, name: str) -> MeasuredRun:
    return whole.measured(name)


def _missing_rows(chunk: Read) -> npt.NDArray[np.bool_]:
    if chunk.missing is None:
        return np.zeros(len(chunk.values), bool)
    by_row = chunk.missing.reshape(len(chunk.values), -1)
    return np.asarray(by_row.any(axis=1), bool)


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a trajectory store for reading, also while it is being written.

    Parameters
    ----------
    path : str or os.PathLike
        Directory of the store, or its URL: ``s3://bucket/run.zarr`` and the like.

    Returns
    -------
    Run
        What was committed at this moment.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    SchemaError
        If it is not a trajectory store, or one of another format version, or if parts
        of it are missing; all problems are listed.
    """
    location = locate(path)
    # Asked in this order, a run that is closed meanwhile does not look interrupted.
    written = is_written(location, open_store(location, read_only=True))
    opened = open_checked(location)
    return Run(location, opened.store, opened.attributes, opened.arrays, written)


_reopening = Lock()


def _reopen(location: str, moment: Moment) -> Run:
    """Open the run of another process, once for all that is sent to this one."""
    with _reopening:
        return _reopened(location, moment)


@lru_cache(maxsize=REOPENED)
def _reopened(location: str, moment: Moment) -> Run:
    opened = as_it_was(location, open_checked(location), moment)
    return Run(
        location, opened.store, opened.attributes, opened.arrays, moment.is_written
    )
