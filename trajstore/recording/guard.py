"""Handle errors of a recording as the user chose, and keep out of forked processes."""

import os
from collections.abc import Callable
from typing import Any
from warnings import warn

from trajstore.recording.options import OnError
from trajstore.recording.resume import Position


class Guard:
    """Runs what records, in the process that made the recorder, and handles its errors."""

    def __init__(self, on_error: OnError, position: Position) -> None:
        self._on_error, self._position = on_error, position
        self.pid = os.getpid()
        self.is_recording = True
        """False after an error that was only warned of."""

    def check_owner(self) -> None:
        """Raise an error in a forked process."""
        if os.getpid() != self.pid:
            raise RuntimeError(
                f"The recorder belongs to process {self.pid}, and this process, "
                f"{os.getpid()}, is a fork of it. Call it there only; forked processes, "
                "such as the workers of a DataLoader, cannot write to its store."
            )

    def record(self, action: Callable[..., None], *arguments: Any) -> None:
        """Call an action that records, unless recording has ended or this is a fork."""
        if self.is_recording and os.getpid() == self.pid:
            self.run(action, *arguments)

    def run(self, action: Callable[..., None], *arguments: Any) -> None:
        """Call an action; raise its error, or warn and end the recording."""
        try:
            action(*arguments)
        except Exception as error:
            if self._on_error == "raise":
                raise
            if self.is_recording:
                self.is_recording = False
                warn(
                    f"Recording ended before step {self._position.step}: {error} Training "
                    "continues.",
                    stacklevel=3,
                )
