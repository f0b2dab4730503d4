"""Send recorded rows to trackers from a thread, so that neither training nor writing waits."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import Full, Queue
from threading import Thread
from typing import Any, Final

from trajstore.format.run_spec import RunSpec
from trajstore.trackers.reporter import Reporter
from trajstore.trackers.rows import (
    Rows,
    StepValues,
    chosen_layers,
    step_values,
)
from trajstore.trackers.sink import Sink

MAX_WAITING: Final = 64
"""Largest number of batches of rows that wait for a slow tracker; later ones are left out."""

CLOSE_SECONDS: Final = 60.0
"""Largest time that the end of a recording waits for trackers."""


class Reports:
    """Reports of one recording to all of its trackers.

    `send` is called by the writer thread, `message` and `close` by the training thread. After
    an error, a tracker receives nothing more.
    """

    def __init__(
        self,
        reporters: Sequence[Reporter],
        spec: RunSpec,
        settings: Mapping[str, object],
        *,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        self._close_seconds = close_seconds
        self._previous_sq: Any = None
        self._next = -1
        self._channels = [_Channel(reporter, spec, settings) for reporter in reporters]

    def send(self, rows: Rows) -> None:
        """Queue the values of rows that have been written."""
        if not rows.scalars:
            return
        try:
            # After a gap, the gradient before the first row is not known.
            previous = self._previous_sq if rows.first == self._next else None
            for channel in self._channels:
                channel.send(rows, previous)
            self._previous_sq = rows.products["grad_sq"][-1].copy()
            self._next = rows.first + len(rows.scalars)
        except Exception as error:  # noqa: BLE001 - reports must not end a recording
            for channel in self._channels:
                channel.end(f"{error!r}")

    def message(self) -> str | None:
        """Return what has gone wrong since the last call, or None."""
        found = [
            text for each in self._channels if (text := each.message()) is not None
        ]
        return " ".join(found) or None

    def close(self) -> None:
        """Wait until everything is sent, but not forever."""
        until = time.monotonic() + self._close_seconds
        for channel in self._channels:
            channel.close(until)


class _Channel:
    """The thread and the queue of one tracker."""

    def __init__(
        self, reporter: Reporter, spec: RunSpec, settings: Mapping[str, object]
    ) -> None:
        assert isinstance(reporter.to, Sink)
        self._sink, self._every, self._names = reporter.to, reporter.every, spec.names
        self._layers = chosen_layers(spec.names, reporter.layers)
        self._settings = settings
        self._queue: Queue[tuple[float, list[StepValues]] | None] = Queue(MAX_WAITING)
        self._messages: list[str] = []
        self._n_told = 0
        self._has_ended = False
        self._n_left_out = 0
        # The program may end while a tracker waits for its server.
        self._thread = Thread(target=self._run, name="trajstore-tracker", daemon=True)
        self._thread.start()

    def send(self, rows: Rows, previous_sq: Any) -> None:
        """Queue the values that this tracker receives."""
        if self._has_ended:
            return
        found = step_values(
            rows,
            self._names,
            every=self._every,
            layers=self._layers,
            previous_sq=previous_sq,
        )
        if not found:
            return
        began = time.time() - rows.scalars[-1].get("wall_time", 0.0)
        try:
            self._queue.put_nowait((began, found))
        except Full:
            if not self._n_left_out:
                self._messages.append(
                    f"{self._name()} is too slow: some steps from {found[0].step} on are not "
                    "reported there, but all are recorded. Report fewer steps with a larger "
                    "`every`."
                )
            self._n_left_out += len(found)

    def end(self, reason: str) -> None:
        """Report nothing more, and say why."""
        if not self._has_ended:
            self._has_ended = True
            self._messages.append(
                f"Nothing more is reported to {self._name()}: {reason}. Training and "
                "recording continue."
            )

    def message(self) -> str | None:
        """Return the messages since the last call."""
        new = self._messages[self._n_told :]
        self._n_told += len(new)
        return " ".join(new) or None

    def close(self, until: float) -> None:
        """Wait until the thread has sent everything, but no longer than `until`."""
        with suppress(Full):
            self._queue.put(None, timeout=max(until - time.monotonic(), 0.0))
        self._thread.join(max(until - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self.end("it did not take the last steps in time")

    def _name(self) -> str:
        return type(self._sink).__name__

    def _run(self) -> None:
        try:
            self._sink.settings(self._settings)
            while (batch := self._queue.get()) is not None:
                began, found = batch
                for step, elapsed, values in found:
                    self._sink.scalars(step, values, time=began + elapsed)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - nor a training run
            self.end(f"{error!r}")
        try:
            self._sink.close()
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self.end(f"{error!r}")
