"""Verify a store: read every chunk and document, and compare numbers that must agree."""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import (
    KEYFRAME_EVERY,
    KEYFRAMES,
    NO_SAMPLE,
    SAMPLES,
    STEP,
    group_metadata,
)
from trajstore.format.document import differences
from trajstore.format.run_spec import SchemaError
from trajstore.reading.ranges import as_ranges
from trajstore.reading.run import Run
from trajstore.reading.verify_results import result_problems
from trajstore.store.chunks import (
    ChunkError,
    Part,
    chunk_key,
    chunks_of,
    read_bytes,
    read_chunk,
    read_part,
)
from trajstore.store.holder import WRITER, is_damaged, parse_holder
from trajstore.store.journal import JOURNAL
from trajstore.store.location import OutsideStoreError, inside, is_remote
from trajstore.store.lock import LOCK

Array = npt.NDArray[Any]
Place = tuple[str, Part]
"""Path of an array, and the slices of a part of it."""

Track = Callable[[Sequence[Place]], Iterable[Place]]

ANCHORS: Final = ("references/codes", "references/scales", KEYFRAMES)

SERVES: Final = {
    "scalars": "logged values, learning rates and norms",
    "tables": "norms of layers, and all results",
    **dict.fromkeys(("signs", "scales"), "gamma, RSI and loLR"),
    **dict.fromkeys(
        ("displacement_probes", "probe_scales"), "distance, gamma, RSI and EB"
    ),
    "gradient_probes": "results that compare these steps with others, and standard errors",
    **dict.fromkeys(("gradient", "displacement"), "all results"),
    "samples": "losses of these batches at other points",
    **dict.fromkeys(
        ("epoch", "iteration", "window"), "nothing, if other arrays tell it"
    ),
}
"""What the steps of an array are needed for, by its name."""

NOT_FINITE: Final = (
    "holds numbers that are not finite: it is damaged, or the run had diverged"
)


class Problem(NamedTuple):
    """A problem of a store."""

    place: str  # key of a chunk or document, or path of an array
    text: str
    cost: str  # data or analyses that are lost with it; may be empty

    def __str__(self) -> str:
        return f"{self.place} {self.text}" + (
            f"; lost: {self.cost}" if self.cost else ""
        )


def problems(run: Run, *, track: Track = iter) -> Iterator[Problem]:
    """Yield every problem of a store with a valid root document."""
    # Reading a chunk verifies its checksum. Some values are checked as well: steps must be
    # consecutive, ``window`` must agree with ``references/start``, and anchors must be finite.
    # `track` wraps the sequence of all chunks, for a progress bar.
    yield from _path_problems(run)
    arrays = run.stored.document.arrays
    is_unfinished = _has_unfinished_commit(run)
    for name, array in arrays.items():
        yield from _document_problems(
            run, name, array.metadata(), any_length=is_unfinished
        )
    for name in sorted({name.rpartition("/")[0] for name in arrays} - {""}):
        yield from _document_problems(run, name, group_metadata({}))
    for name, chunk in track(all_chunks(run)):
        yield from _chunk_problems(run, name, chunk)
    for name in run.stored.document.arrays:
        checks = run.stored.live.of(name)
        for error in checks.lost.values() if checks else ():
            yield Problem(error.key, error.reason, "")
    yield from _epoch_problems(run)
    yield from _window_problems(run)
    for name in run.measurements:
        yield from _measurement_problems(run.measured(name))
    for key, text in result_problems(run):
        yield Problem(
            f"results: {key}", text, "this result; delete it, and compute it again"
        )


def all_chunks(run: Run) -> list[Place]:
    """Return the array and the slices of every chunk of a run."""
    return [
        (name, chunk)
        for name in run.stored.document.arrays
        for chunk in chunks_of(run.stored.array(name))
    ]


def _path_problems(run: Run) -> Iterator[Problem]:
    """Report links and pipes among the files that only writers use."""
    for name in () if is_remote(run.location) else (JOURNAL, LOCK, WRITER):
        try:
            inside(run.location, name)
        except OutsideStoreError as error:
            yield Problem(name, error.reason, "resuming and `traj-store recover`")
            return
    try:
        writer = read_bytes(run.stored.store, WRITER)
    except ChunkError as error:
        yield Problem(WRITER, error.reason, "the name of the writer")
        return
    if writer is not None and is_damaged(writer):
        yield Problem(WRITER, "is truncated or damaged", "the name of the writer")


def _has_unfinished_commit(run: Run) -> bool:
    """Whether a process writes the store, or was killed while it wrote the store."""
    # The writer of a resumed run may be killed before it replaces the root document, which
    # then still says that the run is complete.
    if run.stored.document.status == "running":
        return True
    try:
        writer = read_bytes(run.stored.store, WRITER)
    except ChunkError:
        return False
    return writer is not None and not parse_holder(writer).get("released")


def _document_problems(
    run: Run, name: str, expected: Mapping[str, Any], *, any_length: bool = False
) -> Iterator[Problem]:
    """Compare an array's or a group's own metadata with the metadata in the root document."""
    key = f"{name}/zarr.json"
    try:
        found = json.loads(read_bytes(run.stored.store, key) or b"null")
    except ChunkError as error:
        yield Problem(key, error.reason, "")
    except (ValueError, RecursionError):
        yield Problem(key, "is truncated or damaged", "")
    else:
        if any_length and _differs_in_size(found, expected):
            # A commit, or a resumption, writes this document before the root document.
            expected = {**expected, "shape": found["shape"]}
        for difference in differences(name, expected, found):
            problem = difference.removeprefix(f"{name}: ")
            yield Problem(key, f"does not agree with the root document: {problem}", "")


def _differs_in_size(found: Any, expected: Mapping[str, Any]) -> bool:
    """Whether a shape has other rows, or columns of scalars, and is possible otherwise."""
    shape = found.get("shape") if isinstance(found, dict) else None
    n_free = 2 if "metric" in expected["dimension_names"] else 1
    return (
        isinstance(shape, list)
        and len(shape) == len(expected["shape"])
        and all(type(n) is int and n >= 0 for n in shape)
        and shape[n_free:] == expected["shape"][n_free:]
    )


def protection(run: Run) -> str:
    """Say which damage of a store can be noticed."""
    if run.stored.document.has_checks:
        return "Every chunk is compared with its check in the root document."
    return (
        "The store has format version 1: changed bytes of chunks are noticed, but neither a "
        "copy of another chunk nor a change of the root document."
    )


def _chunk_problems(run: Run, name: str, chunk: Part) -> Iterator[Problem]:
    array, live = run.stored.array(name), run.stored.live
    key = chunk_key(array, chunk)
    try:
        try:
            values = read_chunk(array, chunk, live.of(name))
        except ChunkError:
            if not live.renew():
                raise
            values = read_chunk(array, chunk, live.of(name))
    except ChunkError as error:
        yield Problem(key, error.reason, _cost(run, name, chunk))
        return
    if name in ANCHORS and not np.isfinite(values).all():
        yield Problem(key, NOT_FINITE, _cost(run, name, chunk))
    if name == SAMPLES and (values < NO_SAMPLE).any():
        text = f"holds {values.min()}, which is not the index of an example"
        yield Problem(key, text, _cost(run, name, chunk))


def _cost(run: Run, name: str, chunk: Part) -> str:
    """Describe the data that is lost with a chunk."""
    rows = chunk[0]
    if run.stored.document.arrays[name].spec.dims[0] == STEP:
        numbers = as_ranges(range(rows.start, rows.stop))
        serves = SERVES.get(name.rpartition("/")[2], "")
        rows_of = f"{name} of {'rows' if '/' in name else 'steps'} {numbers}"
        return f"{rows_of} ({serves})" if serves else rows_of
    if not name.startswith("references/"):
        return f"analyses with the target {name}"
    if name == "references/start":
        return "nothing, if the array 'window' is intact"
    windows = range(rows.start, rows.stop)
    if name == KEYFRAMES:
        windows = range(rows.start * KEYFRAME_EVERY, rows.stop * KEYFRAME_EVERY)
    if name in ANCHORS:
        return f"steps {as_ranges(_steps_on(run, windows)) or 'none'}"
    return f"{name} of windows {as_ranges(windows)}"


def _steps_on(run: Run, windows: range) -> Iterator[int]:
    """Yield the steps whose analysis depends on the anchors of `windows`."""
    starts = _starts(run)
    if starts is None:
        return
    stops = np.append(starts[1:], run.n_steps).clip(max=run.n_steps)
    # Anchors are stored as differences, so damage persists until the next keyframe.
    next_keyframe = -(-windows.stop // KEYFRAME_EVERY) * KEYFRAME_EVERY
    lost = range(windows.start, min(next_keyframe, run.n_windows))
    distances = [0, *(1 << j for j in range(run.spec.basis - 1))]
    for window in range(run.n_windows):
        if any(max(window - distance, 0) in lost for distance in distances):
            yield from range(int(starts[window]), int(stops[window]))


def _starts(run: Run) -> Array | None:
    try:
        with warnings.catch_warnings():
            # Damage to these arrays is reported separately.
            warnings.simplefilter("ignore", UserWarning)
            return run.stored.starts
    except SchemaError:
        return None


def _intact(run: Run, name: str) -> Array | None:
    """Read an array with one number per row; return None if a part of the array is lost."""
    array = run.stored.array(name)
    path = run.stored.path(name)
    read = read_part(array, (slice(0, array.shape[0]),), run.stored.live.of(path))
    return read.values if read.missing is None else None


def _epoch_problems(run: Run) -> Iterator[Problem]:
    """Check that each step continues its epoch or begins a later epoch."""
    epochs, iterations = _intact(run, "epoch"), _intact(run, "iteration")
    if epochs is None or iterations is None:
        return
    epochs, iterations = (np.append(-1, a) for a in (epochs, iterations))
    next_in_epoch = (np.diff(epochs) == 0) & (np.diff(iterations) == 1)
    first_of_later = (np.diff(epochs) > 0) & (iterations[1:] == 0)
    wrong = np.flatnonzero(~(next_in_epoch | first_of_later))
    if len(wrong):
        k = wrong[0]
        text = (
            f"are not consecutive at steps {as_ranges(wrong.tolist())}: step {k} is "
            f"iteration {iterations[k + 1]} of epoch {epochs[k + 1]}, after iteration "
            f"{iterations[k]} of epoch {epochs[k]}"
        )
        yield Problem("epoch, iteration", text, "")


def _measurement_problems(run: Run) -> Iterator[Problem]:
    """Check that rows refer to existing steps and windows, in ascending order."""
    for name, stop in (
        ("step", run.stored.step_rows.n_rows + 1),
        ("window", run.n_windows),
    ):
        values = _intact(run, name)
        if values is None or len(values) == 0:
            continue
        if (np.diff(values) < 0).any() or values[0] < 0 or values[-1] >= stop:
            shown = np.array2string(values, threshold=10)
            text = f"does not grow from 0 to at most {stop - 1}: {shown}"
            yield Problem(
                run.stored.path(name), text, f"the measurement {run.group.name!r}"
            )


def _window_problems(run: Run) -> Iterator[Problem]:
    """Check that the starts of windows agree with the windows of steps."""
    starts, windows = _intact(run, "references/start"), _intact(run, "window")
    if starts is None:
        return
    if len(starts) and (starts[0] != 0 or (np.diff(starts) < 0).any()):
        text = f"does not grow from 0: {np.array2string(starts, threshold=10)}"
        yield Problem("references/start", text, "all steps")
        return
    if windows is None:
        return
    expected = np.searchsorted(starts, np.arange(run.n_steps), side="right") - 1
    wrong = np.flatnonzero(windows != expected)
    if len(wrong):
        k = wrong[0]
        text = (
            f"does not agree with references/start at steps {as_ranges(wrong.tolist())}: "
            f"step {k} is in window {windows[k]}, expected {expected[k]}"
        )
        yield Problem("window", text, "")
