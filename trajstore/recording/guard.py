"""Handle recording errors as the user chose, and record nothing in forked processes."""

import os
from collections.abc import Callable
from typing import Any
from warnings import warn

from trajstore.recording.options import OnError
from trajstore.recording.resume import Position


class Guard:
    """Call recording functions in the recorder's process only, and handle their errors."""

    def __init__(self, on_error: OnError, position: Position) -> None:
        self._on_error, self._position = on_error, position
        self.pid = os.getpid()
        self.is_recording = True
        """False after an error that led only to a warning."""

    def check_owner(self) -> None:
        """Raise an error if this process is a fork of the recorder's process."""
        if os.getpid() != self.pid:
            raise RuntimeError(
                f"The recorder belongs to process {self.pid}, and this process, "
                f"{os.getpid()}, is a fork of it. Call the recorder only in process "
                f"{self.pid}; forked processes, such as DataLoader workers, cannot write to "
                "its store."
            )

    def record(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a recording function, unless recording has ended or this process is a fork."""
        if self.is_recording and os.getpid() == self.pid:
            self.run(function, *arguments)

    def run(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function; raise its error, or warn and end the recording."""
        try:
            function(*arguments)
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
