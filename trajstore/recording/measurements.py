"""Make the rows of measurements, which are separate from the rows of steps."""

from collections.abc import Callable

from torch import Tensor

from trajstore.format.arrays import first_sign_number
from trajstore.format.attrs import UPDATE
from trajstore.recording.logged import Scalar
from trajstore.recording.resume import Position
from trajstore.recording.row_buffer import Entry
from trajstore.recording.session import Session
from trajstore.recording.write_queue import NewMeasurement

Row = dict[str, Tensor]


class MeasurementRows:
    """Measure gradients and updates as rows of measurements, and queue the rows."""

    def __init__(
        self,
        session: Session,
        position: Position,
        entry: Callable[[dict[str, Scalar]], Entry],
    ) -> None:
        # `entry` returns the entry of a row with these scalars.
        self._session, self._position, self._entry = session, position, entry
        self._counts = dict(session.start.n_measured)
        # Rows that ranks fill in turn where the write queue of the first rank has no row.
        n_spare = 0 if session.is_alone else 2
        self._spare = [self.new_row() for _ in range(n_spare)]

    def check_name(self, name: str) -> None:
        """Raise an error if a name cannot be given to a measurement."""
        if not name or (self._session.options.updates and name == UPDATE):
            raise ValueError(
                f"A measurement cannot be called {name!r}: a name must not be empty, and "
                f"{UPDATE!r} is the recorder's own measurement with `updates=True`."
            )

    def has_gradients(self) -> bool:
        """Return whether there is a gradient to measure; True if other ranks may have one."""
        session = self._session
        gradients = session.tracker.gradients()
        return not session.is_alone or any(g is not None for g in gradients)

    def measure(self, name: str, scalars: dict[str, Scalar]) -> None:
        """Measure and queue the current gradients."""
        row = self.new_row()
        self._session.tracker.measure(self._sign_number(name), row)
        self._append(name, row, scalars)

    def measure_update(self, number: int, entry: Entry, step: Row) -> None:
        """Measure and queue the update of a step, given the entry and the row of the step."""
        row = self.new_row()
        self._session.tracker.measure_update(self._sign_number(UPDATE), step, row)
        # The update is measured when the next step begins, but belongs to its own step.
        scalars = {"wall_time": entry.scalars["wall_time"]}
        self._queue(UPDATE, number, entry._replace(scalars=scalars, samples=None), row)

    def free_row(self) -> Row:
        """Return a row to fill with the next step."""
        queue = self._session.queue
        row = self._spare[0] if queue is None else queue.row()
        assert row is not None
        return row

    def row_after(self, last: Row) -> Row | None:
        """Return a row that can be filled before the row `last` is complete, if there is one."""
        queue = self._session.queue
        row = None if queue is None else queue.row(last)
        if row is None and self._spare:
            # All ranks must do the same, whatever the queue of the first rank does.
            row = next(spare for spare in self._spare if spare is not last)
        return row

    def new_row(self) -> Row:
        """Return a row outside of the write queue's buffers."""
        return {
            name: rows[0] for name, rows in self._session.tracker.allocate(1).items()
        }

    def _sign_number(self, name: str) -> int:
        """Return the number that selects the random signs of a measurement's next row."""
        names = list(self._counts | {name: 0})
        return first_sign_number(names.index(name)) + self._counts.get(name, 0)

    def _append(self, name: str, row: Row, scalars: dict[str, Scalar]) -> None:
        self._queue(name, self._position.step, self._entry(scalars), row)

    def _queue(self, name: str, step: int, entry: Entry, row: Row) -> None:
        number = self._counts.get(name, 0)
        self._counts[name] = number + 1
        if self._session.queue is not None:
            new = NewMeasurement(name, number, step, entry, row)
            self._session.queue.append_measurement(new)
