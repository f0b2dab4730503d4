"""A stopwatch for what hooks of an optimizer take."""

import time
from typing import Any


class Stopwatch:
    """Times what happens between two hooks of an optimizer."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def begin(self, *_: Any) -> None:
        """Start; a hook."""
        self._begun = time.perf_counter()

    def end(self, *_: Any) -> None:
        """Stop; a hook."""
        self.seconds.append(time.perf_counter() - self._begun)
