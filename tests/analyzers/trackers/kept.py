"""A sink that keeps what it receives; this module needs no torch."""

from collections.abc import Mapping
from pathlib import Path


class KeepingSink:
    """Keep values and names of files."""

    def __init__(self) -> None:
        self.received: list[tuple[int, dict[str, float]]] = []
        self.files: list[tuple[str, str]] = []
        self.is_closed = False
        self.fails = False

    def settings(self, values: Mapping[str, object]) -> None:
        assert "store" in values

    def scalars(self, step: int, values: Mapping[str, float], *, time: float) -> None:
        assert time > 0
        if self.fails:
            raise ConnectionError("no answer")
        self.received.append((step, dict(values)))

    def figure(self, name: str, path: Path, *, step: int) -> None:
        assert step > 0
        self.files.append((name, path.name))

    def page(self, name: str, path: Path) -> None:
        self.files.append((name, path.name))

    def close(self) -> None:
        self.is_closed = True
