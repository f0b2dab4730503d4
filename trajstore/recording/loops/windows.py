"""Begin windows, as planned or because the anchor is far from the iterate."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from trajstore.format.arrays import KEYFRAME_EVERY, table_columns
from trajstore.format.run_spec import RunSpec
from trajstore.format.window_length import begins_window
from trajstore.format.windows import Windows as Schedule
from trajstore.recording.resume import Position
from trajstore.recording.session import Session
from trajstore.recording.write_queue import NewWindow
from trajstore.sketch.deltas import n_codes
from trajstore.tracking.backends.rows import arrays_of

FAR: Final = 8
"""A window begins early if the anchor is this many times |x| away from the iterate x."""

CHECK_EVERY: Final = 4
"""Number of steps between two checks of the distance from the anchor."""


class Windows:
    """Begins the windows of a recording, and queues their anchors."""

    def __init__(self, session: Session, position: Position) -> None:
        self._session, self._position = session, position
        self.anchor_sq = torch.empty(0, dtype=torch.float32)
        """Squared norm of the window's anchor by layer, float64."""
        if position.n_windows > 0:
            self.anchor_sq = session.tracker.anchor_sq()
        self.is_far = False
        """Whether the anchor was far from the iterate in the last check."""
        self._schedule = Schedule.of(session.spec)
        columns = table_columns(session.spec)
        names = ("displacement_sq", "displacement_dot_basis")
        self._columns = [columns[name].start for name in names]
        self._can_check = bool(session.spec.basis and session.is_alone)
        # The squared norm of the anchor, once a check needs it.
        self._total: float | None = None

    def start(self) -> None:
        """Begin a window with the next step."""
        tracker, position, start = self._session.tracker, self._position, 0
        ended = tracker.end_window() if position.n_windows > 0 else None
        queue = self._session.queue
        if queue is not None:
            queue.wait_for_keyframe()
        if position.n_windows == 0:
            # If a recording begins after step 0, earlier steps also belong to this window.
            anchor = tracker.start()
        else:
            # Codes of ranks are gathered in other memory.
            replaced = position.n_windows - n_codes(self._session.spec.basis)
            is_held = queue is not None and self._session.is_alone
            is_free = queue is None or not is_held or queue.wait_for_codes(replaced)
            anchor, start = tracker.move(overwrites=is_free), position.step
        self.anchor_sq, self._total = tracker.anchor_sq(), None
        number = position.n_windows
        keyframe = tracker.keyframe() if number % KEYFRAME_EVERY == 0 else None
        position.n_windows += 1
        position.window_start = start
        if position.step == position.epoch_start:
            position.windows_from = start
        position.next_window = self._schedule.next_start(
            position.step + 1, position.windows_from
        )
        if queue is not None:
            queue.append_window(NewWindow(number, start, anchor, keyframe, ended))

    def start_with_epoch(self, n_before: int) -> None:
        """Let an epoch that is begun by hand begin a window, unless the last one had few steps."""
        # `n_before` is the number of steps in the epoch before.
        position = self._position
        n_in_window = position.step - position.window_start
        if begins_window(
            self._session.spec,
            position.epoch,
            n_before=n_before,
            n_in_window=n_in_window,
        ):
            position.next_window = position.step

    def check_anchor(self, row: Mapping[str, Tensor]) -> None:
        """Begin a window with the next step if the anchor is far from the iterate."""
        # On an accelerator this would wait; windows begin there as they are planned.
        tables = row["tables"]
        if not (self._can_check and tables.is_cpu):
            return
        if self._total is None:
            self._total = float(self.anchor_sq.numpy().sum())
        # As `trajstore.format.rows.is_far`, for one row.
        # Of few numbers, lists are faster than arrays.
        products = (getattr(row, "arrays", None) or arrays_of(row))["tables"]
        square, dot_anchor = (sum(products[:, c].tolist()) for c in self._columns)
        self.is_far = square > FAR**2 * (square + 2 * dot_anchor + self._total)
        if self.is_far:
            self._position.next_window = self._position.step + 1


def check_epochs(spec: RunSpec) -> None:
    """Raise an error if epochs cannot be begun by hand."""
    if spec.steps_per_epoch is not None:
        raise ValueError(
            f"`steps_per_epoch` = {spec.steps_per_epoch} already determines the epochs of this "
            "recording; leave it out to begin epochs with start_epoch()."
        )
