"""A sink that keeps what it receives, and a small recorded training run."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import trajstore


class ListSink:
    """Keep everything; raise an error or wait in the methods that the test chooses."""

    def __init__(self) -> None:
        self.received: list[tuple[int, dict[str, float]]] = []
        self.times: list[float] = []
        self.seen_settings: list[dict[str, Any]] = []
        self.threads: set[str] = set()
        self.files: list[tuple[str, str]] = []
        self.is_closed = False
        self.fails_at: str | None = None
        self.gate: threading.Event | None = None

    def _note(self, method: str) -> None:
        self.threads.add(threading.current_thread().name)
        if self.gate is not None and method == "scalars":
            self.gate.wait()
        if self.fails_at == method:
            raise ConnectionError(f"no answer to {method}")

    def settings(self, values: Mapping[str, object]) -> None:
        self._note("settings")
        self.seen_settings.append(dict(values))

    def scalars(self, step: int, values: Mapping[str, float], *, time: float) -> None:
        self._note("scalars")
        self.received.append((step, dict(values)))
        self.times.append(time)

    def figure(self, name: str, path: Path, *, step: int) -> None:
        self._note("figure")
        self.files.append((name, path.name))

    def page(self, name: str, path: Path) -> None:
        self._note("page")
        self.files.append((name, path.name))

    def close(self) -> None:
        self._note("close")
        self.is_closed = True


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))


def train(
    path: Path,
    *,
    n_steps: int = 12,
    start: Mapping[str, torch.Tensor] | None = None,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """Record a small training run, and return its last parameters."""
    model = network()
    if start is not None:
        model.load_state_dict(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.Generator().manual_seed(1)
    with trajstore.Recorder(
        path, model, optimizer, steps_per_epoch=4, **options
    ) as recorder:
        for _ in range(n_steps):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4, generator=data)).square().mean()
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
    return model.state_dict()
