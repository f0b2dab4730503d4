"""Keep every step in a file of its own until it is committed.

What was written to a file survives the end of the process, however it ends. Each buffer of
rows has a file, ``.journal/STEP`` with the buffer's first step, that is deleted when the
rows are in the store. A record is a line, a checksum and JSON, and the arrays one behind the
other; reading ends with the first record that is not whole.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import SAMPLES
from trajstore.format.rows import complete_rows, measured_arrays
from trajstore.format.run_spec import RunSpec
from trajstore.store.writer import Writer

Array = npt.NDArray[Any]

JOURNAL: Final = ".journal"

MAX_HEADER: Final = 1 << 20
"""Bytes in a line of JSON that is read at most."""


class Record(NamedTuple):
    """One step.

    Attributes
    ----------
    step : int
        Which step.
    place : tuple of int
        Epoch, iteration and window.
    scalars : dict from str to float
        What was logged with it.
    arrays : dict from str to numpy.ndarray
        What `trajstore.format.rows.measured_arrays` describes; ``reference_sq``, float64
        (layer,); and, where indices of examples are kept, ``samples``, int64 (sample,).
    """

    step: int
    place: tuple[int, int, int]
    scalars: dict[str, float]
    arrays: Mapping[str, Array]


class Journal:
    """Writes the records of a recording.

    Parameters
    ----------
    store : pathlib.Path
        Directory of the store.
    """

    def __init__(self, store: Path) -> None:
        self._directory = store / JOURNAL
        self._file: BinaryIO | None = None

    def begin(self, first: int) -> None:
        """Write the next records to a new file, which begins with a step."""
        self.close()
        self._directory.mkdir(exist_ok=True)
        self._file = (self._directory / str(first)).open("wb", buffering=0)

    def append(self, record: Record) -> None:
        """Write one record; it survives the end of the process from now on."""
        assert self._file is not None
        body = b"".join(
            np.ascontiguousarray(a).tobytes() for a in record.arrays.values()
        )
        header = {
            "step": record.step,
            "place": record.place,
            "scalars": record.scalars,
        }
        line = json.dumps(header).encode() + b"\n"
        self._file.write(b"%08x " % _checksum(line, body) + line + body)

    def discard(self, first: int) -> None:
        """Delete the file that begins with a step: all of it is committed."""
        (self._directory / str(first)).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Delete the journal."""
        self.close()
        if self._directory.exists():
            for file in self._directory.iterdir():
                file.unlink()
            self._directory.rmdir()


def read_journal(store: Path, spec: RunSpec, size: int) -> Iterator[Record]:
    """Read the records of a recording that was interrupted, in the order of steps.

    Parameters
    ----------
    store : pathlib.Path
        Directory of the store.
    spec : RunSpec
        What is recorded.
    size : int
        Length of the flat parameter vector.

    Yields
    ------
    Record
        As it was appended. What is not whole is left out, and all that follows it in the
        same file.
    """
    directory = store / JOURNAL
    files = [f for f in directory.glob("*") if f.name.isdigit()]
    for path in sorted(files, key=lambda f: int(f.name)):
        with path.open("rb") as file:
            while (record := _read_record(file, spec, size)) is not None:
                yield record


def replay(writer: Writer, store: Path, spec: RunSpec, size: int) -> int:
    """Write to a store what the journal holds beyond it.

    Parameters
    ----------
    writer : Writer
        Of the store; is not committed.
    store : pathlib.Path
        Directory of the store.
    spec : RunSpec
        What is recorded.
    size : int
        Length of the flat parameter vector.

    Returns
    -------
    int
        How many steps were in the journal only.
    """
    before = writer.n_steps
    for record in read_journal(store, spec, size):
        # Windows are committed before their steps, so these belong to one in the store.
        if record.step == writer.n_steps and record.place[2] < writer.n_windows:
            arrays = {name: array[None] for name, array in record.arrays.items()}
            reference_sq = arrays.pop("reference_sq")
            writer.steps.append(
                *complete_rows(
                    arrays, [record.place], reference_sq, [record.scalars], spec
                )
            )
    return writer.n_steps - before


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
    checksum, _, line = file.readline(MAX_HEADER).partition(b" ")
    body = file.read(n_bytes)
    if len(body) != n_bytes or checksum != b"%08x" % _checksum(line, body):
        return None
    try:
        header = json.loads(line)
        epoch, iteration, window = header["place"]
        step, scalars = int(header["step"]), dict(header["scalars"])
    except (ValueError, KeyError, TypeError):
        return None
    arrays, offset = {}, 0
    for name, (dtype, shape) in kinds.items():
        count = int(np.prod(shape))
        array = np.frombuffer(body, dtype, count, offset).reshape(shape)
        arrays[name], offset = array, offset + array.nbytes
    return Record(step, (epoch, iteration, window), scalars, arrays)


def _checksum(line: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(line))
