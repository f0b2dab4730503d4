"""Keep a journal of steps that are not committed yet, and recover them.

Once a record is written, it survives a crash of the process. Each buffer of rows has a
file, ``.journal/STEP``, which is named after the buffer's first step and deleted when the
rows are committed. A record consists of a line with a checksum and JSON, followed by the
bytes of its arrays. Reading stops at the first incomplete record of a file. Every record names its
recording, so that a journal in a wrong store is refused.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import SAMPLES
from trajstore.format.document import Document
from trajstore.format.rows import complete_rows, measured_arrays
from trajstore.format.run_spec import RunSpec, SchemaError
from trajstore.store.location import inside, is_remote, locate
from trajstore.store.opening import open_checked
from trajstore.store.writer import Writer

Array = npt.NDArray[Any]

JOURNAL: Final = ".journal"

MAX_HEADER_BYTES: Final = 1 << 20


class Record(NamedTuple):
    """One optimizer step."""

    step: int
    place: tuple[int, int, int]  # epoch, iteration, window
    scalars: dict[str, float]
    # The arrays of `measured_arrays`; the anchor's squared norm `reference_sq`, float64
    # (layer,); and `samples`, int64 (sample,), if the run records them.
    arrays: Mapping[str, Array]
    # `trajstore.store.writer.Writer.identity`; empty in records of earlier versions.
    recording: str = ""


class Journal:
    """Writes records to the journal of a store."""

    def __init__(self, store: Path, *, recording: str = "") -> None:
        self._store, self._recording = store, recording
        self._file: BinaryIO | None = None

    def begin(self, first: int) -> None:
        """Start the file of a buffer whose first step is `first`."""
        self.close()
        inside(self._store, JOURNAL).mkdir(exist_ok=True)
        path = inside(self._store, f"{JOURNAL}/{first}")
        self._file = path.open("wb", buffering=0)

    def append(self, record: Record) -> None:
        """Write a record, which then survives a crash of the process."""
        assert self._file is not None
        body = b"".join(
            np.ascontiguousarray(a).tobytes() for a in record.arrays.values()
        )
        header = {
            "step": record.step,
            "place": record.place,
            "scalars": record.scalars,
            "recording": self._recording,
        }
        line = json.dumps(header).encode() + b"\n"
        rest = memoryview(b"%08x " % _checksum(line, body) + line + body)
        start, descriptor = self._file.tell(), self._file.fileno()
        try:
            # If the disk is nearly full, the system writes only a part of the bytes.
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except BaseException:
            # Reading would stop at an incomplete record and miss all later ones.
            self._file.seek(start)
            self._file.truncate()
            raise

    def discard(self, first: int) -> None:
        """Delete the file of a committed buffer."""
        inside(self._store, f"{JOURNAL}/{first}").unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Delete the journal."""
        self.close()
        directory = inside(self._store, JOURNAL)
        if directory.exists():
            for file in directory.iterdir():
                file.unlink()
            directory.rmdir()


def read_journal(store: Path, spec: RunSpec, size: int) -> Iterator[Record]:
    """Yield the complete records of a store's journal, ordered by step."""
    names = [f.name for f in inside(store, JOURNAL).glob("*") if f.name.isdigit()]
    for name in sorted(names, key=int):
        with inside(store, f"{JOURNAL}/{name}").open("rb") as file:
            while (record := _read_record(file, spec, size)) is not None:
                yield record


def replay(writer: Writer, store: Path, spec: RunSpec, size: int) -> int:
    """Append the steps that only the journal has, without a commit; return their number."""
    before = writer.n_steps
    for record in read_journal(store, spec, size):
        if record.recording not in {"", writer.identity}:
            raise SchemaError([_foreign(store, record, writer.identity)])
        # A window is committed before its steps, so the window of a valid step is stored.
        if record.step == writer.n_steps and record.place[2] < writer.n_windows:
            arrays = {name: array[None] for name, array in record.arrays.items()}
            reference_sq = arrays.pop("reference_sq")
            writer.steps.append(
                *complete_rows(
                    arrays, [record.place], reference_sq, [record.scalars], spec
                )
            )
    return writer.n_steps - before


def _foreign(store: Path, record: Record, identity: str) -> str:
    directory = store / JOURNAL
    return (
        f"{directory} is the journal of another recording: its step {record.step} belongs to "
        f"{record.recording!r}, and the store to {identity!r} (the time at which a recording "
        "began, and how often it was resumed). Nothing has been changed. Move the journal to the "
        "store that it belongs to, or delete it."
    )


def has_journal(location: str) -> bool:
    """Whether a store has a journal: its run is being recorded, or was interrupted."""
    return not is_remote(location) and (Path(location) / JOURNAL).exists()


def steps_in_journal(location: str, document: Document) -> int:
    """Return the number of steps that only the journal of a store holds, as `replay` does."""
    if not has_journal(location):
        return 0
    n_steps = before = document.n_rows(document.steps)
    records = read_journal(Path(location), document.spec, document.layout.size)
    for record in records:
        if record.step == n_steps and record.place[2] < document.n_windows:
            n_steps += 1
    return n_steps - before


def recover(path: str | os.PathLike[str]) -> int:
    """Write to the store the steps that only the journal holds.

    Use this function for an interrupted recording that will not be resumed; resuming a
    recording does the same.

    Parameters
    ----------
    path : str or os.PathLike
        Directory of the store.

    Returns
    -------
    int
        Number of recovered steps.

    Raises
    ------
    StoreLockedError
        If the store is being written.
    SchemaError
        If `path` is not a trajectory store, or the journal belongs to another recording.
    """
    location = locate(path)
    if not has_journal(location):
        return 0
    # A notebook already runs an event loop in this thread; a new thread has none.
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(_recover, Path(location)).result()


def _recover(store: Path) -> int:
    document = open_checked(str(store)).document
    spec, size = document.spec, document.layout.size
    writer = Writer(store, spec, resume=True)
    try:
        n_recovered = replay(writer, store, spec, size)
        writer.commit()
        Journal(store).remove()
    finally:
        writer.close()
    return n_recovered


def _read_record(file: BinaryIO, spec: RunSpec, size: int) -> Record | None:
    kinds = measured_arrays(spec, size) | {
        "reference_sq": ("float64", (len(spec.names),))
    }
    if spec.samples:
        kinds[SAMPLES] = ("int64", (spec.samples,))
    n_bytes = sum(
        np.dtype(dtype).itemsize * int(np.prod(shape))
        for dtype, shape in kinds.values()
    )
    checksum, _, line = file.readline(MAX_HEADER_BYTES).partition(b" ")
    body = file.read(n_bytes)
    if len(body) != n_bytes or checksum != b"%08x" % _checksum(line, body):
        return None
    try:
        header = json.loads(line)
        epoch, iteration, window = header["place"]
        step, scalars = int(header["step"]), dict(header["scalars"])
        recording = str(header.get("recording", ""))
    except (ValueError, KeyError, TypeError):
        return None
    arrays, offset = {}, 0
    for name, (dtype, shape) in kinds.items():
        count = int(np.prod(shape))
        array = np.frombuffer(body, dtype, count, offset).reshape(shape)
        arrays[name], offset = array, offset + array.nbytes
    return Record(step, (epoch, iteration, window), scalars, arrays, recording)


def _checksum(line: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(line))
