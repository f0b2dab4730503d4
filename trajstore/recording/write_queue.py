"""Write rows, windows and measurements to the store from a background thread."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trajstore.format.arrays import ITEM_SIZE, SAMPLES, STEP
from trajstore.format.attrs import UPDATE
from trajstore.format.rows import n_out_of_range
from trajstore.format.run_spec import FLUSH_BYTES, RunSpec
from trajstore.format.scaled_tables import unscaled_rows
from trajstore.recording.background import Background
from trajstore.recording.host_copies import HostCopies, to_numpy
from trajstore.recording.logged import to_floats
from trajstore.recording.loops.lookout import LOOK_SECONDS, Lookout
from trajstore.recording.loops.notices import warn_user
from trajstore.recording.row_buffer import Entry, Fetch, RowBuffer, Rows, to_arrays
from trajstore.store import writer as stored
from trajstore.store.journal import Journal, Record
from trajstore.store.writer import Window, Writer
from trajstore.trackers.reports import Reports
from trajstore.trackers.rows import Rows as ReportedRows
from trajstore.trackers.rows import products_of
from trajstore.tracking.tracker import CodedAnchor
from trajstore.tracking.window_sums import EndedWindow

if TYPE_CHECKING:
    from concurrent.futures import Future

HEAD_START: Final = 0.002
"""Seconds that the writer thread sleeps before it writes, while the training thread continues;
otherwise the training thread could wait 5 ms for the writer thread to release Python's lock."""


COPIED_BYTES: Final = 1 << 20
"""Anchors of up to this size are copied, so that the next window need not wait for the writer."""


class NewWindow(NamedTuple):
    """A window on its way to the store."""

    number: int
    start: int
    """First step of the window."""
    anchor: CodedAnchor
    keyframe: Tensor | None
    """The tracker's own anchor or a copy, to be read by the writer thread; None if not a keyframe."""
    ended: EndedWindow | None = None
    """What is known of the window before this one, which has ended."""


class NewMeasurement(NamedTuple):
    """A row of a measurement on its way to the store."""

    name: str
    number: int
    """Index among the rows of the measurement."""
    step: int
    """Number of optimizer steps taken before the measurement."""
    entry: Entry
    row: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.row.values())


class WriteQueue:
    """Collect rows and windows, and let the writer thread write them.

    Two buffers take turns: the training thread fills one buffer while the writer thread writes
    the other buffer. The writer thread also copies results from the device to the host.
    """

    def __init__(
        self,
        writer: Writer,
        background: Background,
        spec: RunSpec,
        allocate: Callable[[int], dict[str, Tensor]],
        finish: Callable[[], None],
        *,
        first: int,
        flush_rows: int,
        flush_seconds: float,
        journal: Journal | None,
        copies: HostCopies,
        reports: Reports | None = None,
    ) -> None:
        self._writer, self._background, self._spec = writer, background, spec
        # `finish` completes rows that were measured; other ranks may have parts of them.
        self._copies, self._reports, self._finish_rows = copies, reports, finish
        row = allocate(1)
        row_bytes = sum(tensor.nbytes for tensor in row.values())
        if spec.scaled:
            # Tables are stored in half of their bytes.
            row_bytes -= row["tables"].nbytes // 2
        row_bytes += ITEM_SIZE["int64"] * spec.samples
        capacity = max(1, min(flush_rows, FLUSH_BYTES // row_bytes))
        self._buffer = RowBuffer(measured=allocate(capacity), first=first)
        self._spare = RowBuffer(measured=allocate(capacity))
        self._windows: list[NewWindow] = []
        self._measurements: list[NewMeasurement] = []
        self._measured_bytes = 0
        self.n_out_of_range = 0
        """Number of rows whose gradients float32 holds, but not their norms or sketches."""
        self._keyframe_is_pending = False
        # Jobs that write the codes of windows, by window; None if they are not submitted yet.
        self._codes: dict[int, Future[None] | None] = {}
        self._has_large_codes = False
        self._lookout = Lookout(
            time.monotonic(), flush_seconds=flush_seconds, first=first
        )
        self._journal = journal
        if journal is not None:
            journal.begin(first)

    def row(
        self, after: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor] | None:
        """Return views of the next free row, or of the row after it if it is `after`."""
        # Raises an error if writing has failed. None if there is no such row: the buffer ends, or
        # a flush has swapped the buffers since the row `after` began.
        written = self._spare.written
        if written is not None and written.done():
            self._background.check()
            self._spare.written = None
        buffer = self._buffer
        number = len(buffer.entries)
        if after is None:
            return buffer.rows[number]
        is_next = buffer.rows[number] is after and number + 1 < len(buffer.rows)
        return buffer.rows[number + 1] if is_next else None

    def append(self, step: int, entry: Entry, row: Mapping[str, Tensor]) -> None:
        """Append a filled row; `submit_if_due` then makes room for the next row."""
        if self._journal is not None:
            self._finish_rows()
            self._journal.append(_record(step, entry, row))
        buffer = self._buffer
        free = buffer.rows[len(buffer.entries)]
        if row is not free:
            # A flush has swapped the buffers since the row began.
            self._finish_rows()
            for name, tensor in free.items():
                tensor.copy_(row[name])
        buffer.entries.append(entry)
        if self._copies.is_needed:
            self._copies.mark()

    def submit_if_due(self) -> None:
        """Submit rows if the buffer is full or rows have waited long enough."""
        buffer, now = self._buffer, time.monotonic()
        is_full = len(buffer.entries) == len(buffer.rows)
        if is_full or now >= self._lookout.next_flush:
            self.submit()
        elif now >= self._lookout.next_look:
            self._look(now)

    def wait_for_keyframe(self) -> None:
        """Wait until the writer thread has read the tracker's anchor, which may then move."""
        if self._keyframe_is_pending:
            self._background.wait()
            self._keyframe_is_pending = False

    def wait_for_codes(self, window: int) -> bool:
        """Return whether the codes of a window are written; wait for those of a large network."""
        job = self._codes.get(window)
        if job is not None and self._has_large_codes:
            job.exception()
        return window not in self._codes or (job is not None and job.done())

    def append_window(self, window: NewWindow) -> None:
        """Append a window, before its first row is appended."""
        keyframe = window.keyframe
        if keyframe is not None and keyframe.nbytes <= COPIED_BYTES:
            window, keyframe = window._replace(keyframe=keyframe.clone()), None
        self._windows.append(window)
        self._codes[window.number] = None
        self._has_large_codes = window.anchor.codes.nbytes >= FLUSH_BYTES
        self._copies.mark()
        self._keyframe_is_pending = keyframe is not None
        code_bytes = sum(new.anchor.codes.nbytes for new in self._windows)
        if self._journal is not None:
            # The journal must hold only steps whose window is in the store.
            self.flush()
        elif self._keyframe_is_pending or code_bytes >= FLUSH_BYTES:
            self.submit()

    def append_measurement(self, measurement: NewMeasurement) -> None:
        """Append a row of a measurement, to be written after all windows that have begun."""
        self._measurements.append(measurement)
        self._copies.mark()
        self._measured_bytes += measurement.nbytes
        if self._measured_bytes >= FLUSH_BYTES:
            self.submit()

    def flush(self) -> None:
        """Commit everything appended so far, and wait for the commit."""
        self.submit()
        self._background.wait()

    def submit(self) -> None:
        """Give new rows to the writer thread, and continue with the other buffer."""
        # After an interruption such as Ctrl-C, this method may run again for the same rows and
        # windows; the writer knows which of them it has written.
        self._finish_rows()
        self._lookout.next_flush = time.monotonic() + self._lookout.flush_seconds
        if self._reports is not None and (message := self._reports.message()):
            warn_user(message)
        full, windows, measured = self._buffer, self._windows, self._measurements
        if len(full) == 0 and not windows and not measured:
            return

        def write() -> None:
            time.sleep(HEAD_START)
            with self._copies.after_mark():
                self._finish(full, self._write(full, windows, measured))

        full.written = self._background.submit(write)
        self._codes |= {window.number: full.written for window in windows}
        self._codes = {n: j for n, j in self._codes.items() if not (j and j.done())}
        if self._spare.written is not None:
            self._spare.written.exception()
        self._spare.clear(full.first + len(full))
        if self._journal is not None and len(full) > 0:
            self._journal.begin(self._spare.first)
        self._windows, self._measurements, self._measured_bytes = [], [], 0
        self._buffer, self._spare = self._spare, full

    def forget_journal(self) -> None:
        """Delete the journal, after all of its rows have been committed."""
        if self._journal is not None:
            self._journal.remove()

    def end_window(self, number: int, ended: EndedWindow | None) -> None:
        """Write what is known of a window that has ended; call this in the writer thread."""
        if ended is not None and self._writer.n_ended == number:
            self._writer.end_window(stored.EndedWindow(*self._copies.fetch(ended)))

    def close_journal(self) -> None:
        """Close the file of the journal."""
        if self._journal is not None:
            self._journal.close()

    def _look(self, now: float) -> None:
        """Let the writer thread look at new rows, and commit them early if they show trouble."""
        lookout, rows = self._lookout, self._buffer
        lookout.next_look = now + LOOK_SECONDS
        self._background.check()
        n_rows = len(rows)
        is_new = rows.first + n_rows > lookout.next_row
        if lookout.is_over or not is_new or not self._background.is_idle:
            return
        windows, measured = self._windows.copy(), self._measurements.copy()
        self._finish_rows()

        def look() -> None:
            time.sleep(HEAD_START)
            new = slice(max(0, lookout.next_row - rows.first), n_rows)
            lookout.next_row = rows.first + n_rows
            with self._copies.after_mark():
                found = rows.norms_and_losses(self._spec, self._copies.fetch, new)
                if lookout.finds_trouble(*found):
                    # The rows stay in the buffer; the writer will know that it has them.
                    self._write(rows, windows, measured, n_rows)

        self._background.submit(look)

    def _write(
        self,
        buffer: RowBuffer,
        windows: list[NewWindow],
        measured: list[NewMeasurement],
        n_rows: int | None = None,
    ) -> Rows | None:
        """Commit windows, the first or all rows of a buffer, and rows of measurements."""
        rows = None
        for window in windows:
            if window.number >= self._writer.n_windows:
                self.end_window(window.number - 1, window.ended)
                self._writer.append_window(_to_store(window, self._copies.fetch))
        if len(buffer) > 0:
            rows = buffer.arrays(self._spec, self._copies.fetch, n_rows)
            self._writer.steps.append(*rows, first=buffer.first)
        for name in dict.fromkeys(new.name for new in measured):
            self._write_measured([new for new in measured if new.name == name])
        self._writer.commit()
        return rows

    def _finish(self, full: RowBuffer, rows: Rows | None) -> None:
        """Report the rows of a buffer that has been committed, and discard their journal."""
        if rows is None:
            return
        arrays, scalars = rows
        self.n_out_of_range += n_out_of_range(arrays, self._spec)
        if self._reports is not None:
            tables, values = unscaled_rows(arrays["tables"], scalars, self._spec)
            products = products_of(tables, self._spec)
            self._reports.send(ReportedRows(full.first, products, values))
        if self._journal is not None:
            self._journal.discard(full.first)

    def _write_measured(self, measured: list[NewMeasurement]) -> None:
        """Write rows of one measurement."""
        rows = {
            name: torch.stack([new.row[name] for new in measured])
            for name in measured[0].row
        }
        entries = [new.entry for new in measured]
        arrays, scalars = to_arrays(
            rows,
            entries,
            self._spec,
            self._copies.fetch,
            are_updates=measured[0].name == UPDATE,
        )
        arrays[STEP] = np.array([new.step for new in measured])
        for row in scalars:
            del row["update_norm"]
        table = self._writer.measurement(measured[0].name)
        table.append(arrays, scalars, first=measured[0].number)


def _to_store(window: NewWindow, fetch: Fetch) -> Window:
    """Wait for the device, and convert a window for the writer."""
    codes, scales, weights, arrival, probes = fetch(window.anchor)
    keyframe = None if window.keyframe is None else fetch([window.keyframe])[0]
    return Window(window.start, codes, scales, weights, arrival, probes, keyframe)


def _record(step: int, entry: Entry, row: Mapping[str, Tensor]) -> Record:
    """Wait for the device, and convert a row for the journal."""
    names, tensors = [*row, "reference_sq"], [*row.values(), entry.anchor_sq]
    arrays = dict(zip(names, to_numpy(tensors), strict=True))
    if entry.samples is not None:
        arrays[SAMPLES] = entry.samples
    return Record(step, entry.place, to_floats(entry.scalars), arrays)
