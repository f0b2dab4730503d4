"""Begin windows, as planned or because the anchor is far from the iterate."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from trajstore.format.arrays import KEYFRAME_EVERY
from trajstore.format.rows import is_far
from trajstore.recording.resume import Position
from trajstore.recording.session import Session
from trajstore.recording.write_queue import NewWindow

FAR: Final = 8
"""A window begins early if the anchor is this many times |x| away from the iterate x."""

CHECK_EVERY: Final = 4
"""Number of steps between two checks of the distance from the anchor."""


class Windows:
    """Begins the windows of a recording, and queues their anchors."""

    def __init__(self, session: Session, position: Position) -> None:
        self._session, self._position = session, position
        self.anchor_sq = torch.empty(0)
        """Squared norm of the window's anchor by layer, float64."""
        if position.n_windows > 0:
            self.anchor_sq = session.tracker.anchor_sq()
        self.is_far = False
        """Whether the anchor was far from the iterate in the last check."""

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
            anchor, start = tracker.move(), position.step
        self.anchor_sq = tracker.anchor_sq()
        number = position.n_windows
        keyframe = tracker.keyframe() if number % KEYFRAME_EVERY == 0 else None
        position.n_windows += 1
        position.next_window = self._session.options.windows().next_start(
            position.step + 1, position.epoch_start
        )
        if queue is not None:
            queue.append_window(NewWindow(number, start, anchor, keyframe, ended))

    def check_anchor(self, row: Mapping[str, Tensor]) -> None:
        """Begin a window with the next step if the anchor is far from the iterate."""
        spec, tables = self._session.spec, row["tables"]
        # On an accelerator this would wait; windows begin there as they are planned.
        self.is_far = bool(
            spec.basis
            and tables.is_cpu
            and self._session.is_alone
            and is_far(tables.numpy(), self.anchor_sq.numpy().sum(), spec, FAR)
        )
        if self.is_far:
            self._position.next_window = self._position.step + 1
