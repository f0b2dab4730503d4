"""Read stored rows for analyses, cached by chunk, with NaN for damaged chunks."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import (
    DISPLACEMENT_CODES,
    DISPLACEMENT_SCALES,
    ENERGIES,
    NO_SAMPLE,
    SAMPLES,
    STEP,
    SUM_SCALES,
    SUM_SIGNS,
)
from trajstore.format.document import Document, RowGroup
from trajstore.format.run_spec import SchemaError
from trajstore.format.scaled_tables import EXPONENTS, unscaled
from trajstore.reading.anchors import Anchors
from trajstore.reading.chunk_checks import LiveChecks
from trajstore.sketch.displacement_sum import DecodedSum, DisplacementSum
from trajstore.sketch.probes import Probes
from trajstore.sketch.sketch import Sketch, probes_of, sketch_of
from trajstore.sketch.window_sum import WindowSum
from trajstore.store.chunks import (
    CheckedStore,
    ChunkError,
    ReadResult,
    open_array,
    read_part,
)

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.floating[Any]]

CACHED_CHUNKS: Final = 32
"""Number of chunks of rows to keep in memory, 2 MB each."""

CACHED_VECTOR_PARTS: Final = 4
"""Number of parts of parameter vectors to keep in memory."""

LARGE_PART: Final = 1 << 20
"""Elements of a part of a vector from which on it is not kept: reading it takes far less time than
what is done with so many elements."""

BOTH_LOST: Final = (
    "chunks of both 'references/start' and 'window' are damaged, so the windows of the "
    "steps are unknown"
)


@dataclass(frozen=True, slots=False, eq=False)
class StoredRows:
    """Rows of a run's optimizer steps, or of one of its measurements."""

    location: str
    store: CheckedStore
    document: Document
    group: RowGroup
    # Whether a process was writing the store when it was opened; None if that is unknown.
    is_written: bool | None
    live: LiveChecks  # shared by all groups of rows
    _arrays: dict[str, Any] = field(default_factory=dict, repr=False)
    _reported: set[str] = field(default_factory=set, repr=False)

    @cached_property
    def step_rows(self) -> "StoredRows":
        """Rows of the optimizer steps of the same run."""
        if not self.group.is_measurement:
            return self
        return replace(self, group=self.document.steps)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.document.n_rows(self.group)

    @property
    def n_windows(self) -> int:
        """Number of windows of the run."""
        return self.document.n_windows

    @cached_property
    def step_numbers(self) -> npt.NDArray[np.int64]:
        """Number of optimizer steps before each row, int64 (row,)."""
        if self.group.is_measurement:
            read = self._read_rows(STEP, slice(0, self.n_rows))
            if read.missing is not None:
                text = "damaged, so the steps of the rows are unknown"
                raise SchemaError([self._problem(f"{self.path(STEP)}: {text}")])
            return read.values
        return np.arange(self.n_rows)

    @cached_property
    def sign_numbers(self) -> npt.NDArray[np.int64]:
        """Numbers that seed the random signs of the rows, int64 (row,)."""
        return self.group.first_sign_number + np.arange(self.n_rows)

    @cached_property
    def epochs(self) -> npt.NDArray[np.int32]:
        """Epoch of every row, int32 (row,); -1 if it is lost."""
        return self._read_rows("epoch", slice(0, self.n_rows)).values

    @cached_property
    def iterations(self) -> npt.NDArray[np.int32]:
        """Number of steps since the start of the epoch, int32 (row,); -1 if it is lost."""
        return self._read_rows("iteration", slice(0, self.n_rows)).values

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """First row of every window, int64 (window,)."""
        windows = np.arange(self.n_windows)
        if self.group.is_measurement:
            window = self.read("window", slice(0, self.n_rows))
            if window.missing is not None or (np.diff(window.values) < 0).any():
                problem = (
                    f"{self.path('window')}: damaged, so the windows of the rows are "
                    "unknown"
                )
                raise SchemaError([self._problem(problem)])
            return np.searchsorted(window.values, windows)
        start = self.read("references/start", slice(0, self.n_windows))
        values = start.values
        if start.missing is not None:
            window = self.read("window", slice(0, self.n_rows))
            if window.missing is not None:
                raise SchemaError([self._problem(BOTH_LOST)])
            values = np.searchsorted(window.values, windows)
        if len(values) and (values[0] != 0 or (np.diff(values) < 0).any()):
            problem = (
                f"references/start: expected steps that ascend from 0, got {values}"
            )
            raise SchemaError([self._problem(problem)])
        return values

    @cached_property
    def epoch_windows(self) -> dict[int, int]:
        """Mapping from an epoch to the window that starts at its first step."""
        steps = self.step_rows
        start = steps.starts[steps.starts < steps.n_rows]
        epochs, is_first = steps.epochs[start], steps.iterations[start] == 0
        return {int(epochs[c]): int(c) for c in np.flatnonzero(is_first)}

    @cached_property
    def sketch(self) -> Sketch:
        """Sketch of the gradients in the first window."""
        return sketch_of(self.document.spec, self.document.layout)

    def sketch_of(self, window: int) -> Sketch:
        """Return the sketch of the gradients in a window."""
        return replace(self.sketch, window=window)

    def block_energies(self, window: int) -> FloatArray | None:
        """Return relative energies of elements of a window's gradients, float32 (block,)."""
        # The open window of a run has the energies of the window before it. Measurements are
        # not made of the gradients of the steps.
        name, n_ended = ENERGIES, self.document.n_ended
        if self.group.is_measurement or name not in self.document.arrays:
            return None
        for known in range(min(window, n_ended - 1), max(window - 2, -1), -1):
            energies = self.rows(name, slice(known, known + 1))[0]
            if np.isfinite(energies).all():
                return np.asarray(energies, np.float32)
        return None

    def window_sum(self, window: int) -> FloatArray | None:
        """Return decoded folds of the sum of a window's gradients, float32 (fold, width)."""
        names = SUM_SIGNS, SUM_SCALES
        is_stored = self.document.spec.window_folds > 0
        if not is_stored or (sketch := self._ended(window, *names)) is None:
            return None
        return self.window_sum_of(window).decode(*sketch)

    def displacement_sum(self, window: int) -> DecodedSum | None:
        """Return the decoded sum of a window's displacements; None if it is not known."""
        names = DISPLACEMENT_CODES, DISPLACEMENT_SCALES
        is_stored = self.document.spec.displacement_sum
        if not is_stored or (sketch := self._ended(window, *names)) is None:
            return None
        total = DisplacementSum(sketch=self.sketch, probes=self.probes, window=window)
        return total.decode(*sketch)

    def _ended(
        self, window: int, codes: str, scales: str
    ) -> tuple[npt.NDArray[Any], FloatArray] | None:
        """Return the codes and scales of a window's sum; None if they are not known."""
        row, document = slice(window, window + 1), self.document
        if (
            self.group.is_measurement
            or window >= document.n_ended
            or self.is_missing(codes, row).any()
        ):
            return None
        values = self.rows(scales, row)[0]
        return (self.rows(codes, row)[0], values) if np.isfinite(values).all() else None

    def window_sum_of(self, window: int) -> WindowSum:
        """Return the sketch of the sum of a window's gradients."""
        n_folds = self.document.spec.window_folds
        return WindowSum(sketch=self.sketch_of(window), n_folds=n_folds)

    @cached_property
    def probes(self) -> Probes:
        """Random projections of gradients and displacements."""
        return probes_of(self.document.spec, self.document.layout)

    @property
    def folded_offsets(self) -> npt.NDArray[np.int64]:
        """Index of each tensor's first element in the vector that is folded, int64 (layer,)."""
        layout = self.document.layout
        return layout.packed_offsets if self.sketch.is_packed else layout.offsets

    def folded(self, vector: FloatArray) -> FloatArray:
        """Return the elements of a whole flat vector that the sketch and the probes fold."""
        if self.sketch.is_packed:
            return vector[self.document.layout.packed_elements]
        return vector

    @cached_property
    def anchors(self) -> Anchors:
        """Decoder of the anchors of windows."""
        return Anchors(self, self.document.spec.float_type)

    def path(self, name: str) -> str:
        """Return the path of the group's array `name`, or `name` if it is already a path."""
        path = self.group.path_of(name)
        return path if path in self.document.arrays else name

    def array(self, name: str) -> Any:
        """Return a `zarr.Array`; reading a damaged part raises `ChunkError` or `ValueError`."""
        path = self.path(name)
        if path not in self._arrays:
            array = self.document.arrays[path]
            checks = self.live.of(path)
            self._arrays[path] = (
                checks.array
                if checks is not None and checks.array.shape == array.shape
                else open_array(self.store, path, array)
            )
        return self._arrays[path]

    def rows(self, name: str, rows: slice) -> Array:
        """Return rows of an array, read-only; recent chunks are cached."""
        # Epochs, iterations and windows in damaged chunks are recomputed if possible, and
        # otherwise read as -1. Of other arrays, floats read as NaN, samples as -1 and other
        # integers as 0. `is_missing` distinguishes all of these from stored values.
        values = self._from_chunks(name, rows, _values)
        if name == "tables" and self.has_exponents:
            return self._products(values, rows)
        return values

    @cached_property
    def has_exponents(self) -> bool:
        """Whether products of some rows are stored with powers of two, and read as float64."""
        has_names = set(EXPONENTS) <= set(self.group.metrics)
        return self.document.spec.scaled and has_names

    def dtype(self, name: str) -> Any:
        """Return the type of the rows of an array."""
        is_wide = name == "tables" and self.has_exponents
        return np.dtype(np.float64) if is_wide else self.array(name).dtype

    def _products(self, tables: Array, rows: slice) -> Array:
        """Multiply stored tables by their powers of two, NaN if these are lost."""
        scalars, metrics = self.rows("scalars", rows), self.group.metrics
        exponents = {name: scalars[:, metrics.index(name)] for name in EXPONENTS}
        products = unscaled(tables, exponents, self.document.spec)
        products[self.is_missing("scalars", rows)] = np.nan
        return products

    def is_missing(self, name: str, rows: slice) -> npt.NDArray[np.bool_]:
        """Return a mask of the rows that are lost, at least in part, bool (row,)."""
        return self._from_chunks(name, rows, _missing_rows)

    def large_rows(self, name: str, rows: slice, elements: slice) -> FloatArray:
        """Read a part of whole gradients or displacements, (row, element), uncached."""
        values: FloatArray = self.read(name, rows, elements).values
        return values

    def vector(self, path: str, elements: slice) -> FloatArray:
        """Return a part of a parameter vector, (element,), read-only; small parts are cached."""
        start, stop = elements.start, elements.stop
        read = (
            self._vector_part if stop - start < LARGE_PART else self._read_vector_part
        )
        return read(path, start, stop)

    def read(self, name: str, *part: slice) -> ReadResult:
        """Read slices of the leading dimensions, and warn of damage."""
        array, path = self.array(name), self.path(name)
        whole = (*part, *(slice(0, n) for n in array.shape[len(part) :]))
        checks = self.live.of(path)
        read = read_part(array, whole, checks)
        if read.errors and self.live.renew():
            read = read_part(array, whole, self.live.of(path))
        self._report(read.errors)
        if checks is not None and checks.lost:
            self._report_lost([*checks.lost.values()])
        return read

    @cached_property
    def _vector_part(self) -> Callable[[str, int, int], FloatArray]:
        return lru_cache(maxsize=CACHED_VECTOR_PARTS)(self._read_vector_part)

    def _read_vector_part(self, path: str, start: int, stop: int) -> FloatArray:
        values: FloatArray = self.read(path, slice(start, stop)).values
        values.flags.writeable = False
        return values

    def _from_chunks(
        self, name: str, rows: slice, convert: Callable[[ReadResult], Array]
    ) -> Array:
        """Convert the chunks that overlap `rows`, and return the converted rows."""
        n = self.array(name).chunks[0]
        chunks = range(rows.start // n, max(rows.start // n + 1, -(-rows.stop // n)))
        parts = [convert(self._chunk(name, c)) for c in chunks]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        first = chunks.start * n
        return joined[rows.start - first : rows.stop - first]

    @cached_property
    def _chunk(self) -> Callable[[str, int], ReadResult]:
        return lru_cache(maxsize=CACHED_CHUNKS)(self._read_chunk)

    def _read_chunk(self, name: str, index: int) -> ReadResult:
        array = self.array(name)
        n = array.chunks[0]
        rows = slice(*(min(i * n, array.shape[0]) for i in (index, index + 1)))
        return self._read_rows(name, rows)

    def _read_rows(self, name: str, rows: slice) -> ReadResult:
        """Read whole rows, and recompute lost values from other arrays where possible."""
        read = self.read(name, rows)
        if read.missing is not None and name in {"epoch", "iteration", "window"}:
            steps = np.arange(rows.start, rows.stop)[read.missing]
            read.values[read.missing] = self._derived(name, steps)
        if read.missing is not None and name == SAMPLES:
            read.values[read.missing] = NO_SAMPLE
        read.values.flags.writeable = False
        return read

    def _derived(self, name: str, steps: Array) -> Array | int:
        """Compute epochs, iterations or windows of steps; -1 if that is impossible."""
        if self.group.is_measurement:
            return -1
        if name == "window":
            start = self.read("references/start", slice(0, self.n_windows))
            if start.missing is not None:
                return -1
            return np.searchsorted(start.values, steps, side="right") - 1
        per_epoch = self.document.spec.steps_per_epoch
        if per_epoch is None:
            return -1
        return steps // per_epoch if name == "epoch" else steps % per_epoch

    def _report(self, errors: Iterable[ChunkError]) -> None:
        for error in errors:
            if error.key not in self._reported:
                self._reported.add(error.key)
                text = self._problem(f"{error}; its values read as NaN")
                warnings.warn(text, UserWarning, stacklevel=2)

    def _report_lost(self, segments: Iterable[ChunkError]) -> None:
        for error in segments:
            if error.key not in self._reported:
                self._reported.add(error.key)
                text = self._problem(f"the list of checks {error.key} {error.reason}")
                warnings.warn(text, UserWarning, stacklevel=3)

    def _problem(self, problem: str) -> str:
        return f"{self.location}: {problem}. See traj-store verify {self.location}"


def _values(chunk: ReadResult) -> Array:
    return chunk.values


def _missing_rows(chunk: ReadResult) -> npt.NDArray[np.bool_]:
    if chunk.missing is None:
        return np.zeros(len(chunk.values), bool)
    by_row = chunk.missing.reshape(len(chunk.values), -1)
    return np.asarray(by_row.any(axis=1), bool)
