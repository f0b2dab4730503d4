"""One training run under several recorders, whose seeds separate bias from spread."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.optim import Optimizer

from trajstore import Recorder, open_run
from trajstore.reading.run import Run

Array = npt.NDArray[np.float64]
Intervene = Callable[[int, nn.Module, Optimizer], None]


FOUR: dict[str, Any] = {
    "n_seeds": 4,
    "widths": (64, 128, 10),
    "sketch_bits": 2048,
    "probes": 256,
}
"""Options of `train` for four recorders of a network whose gradients are folded."""


class Seeded(NamedTuple):
    """Recordings of one training run, and its exact iterates and gradients."""

    runs: list[Run]  # one for each seed
    x: Array  # (step + 1, param)
    g: Array  # (step, param)
    sizes: list[int]

    def exact(self, *, weight_decay: float = 0.0) -> dict[str, Array]:
        """Return the quantities of `path_geometry` in float64."""
        g, d = self.g + weight_decay * self.x[:-1], self.x[:-1] - self.x[-1]
        h, d_sq, g_sq = (g * d).sum(1), (d * d).sum(1), (g * g).sum(1)
        return {
            "gamma": h / np.sqrt(g_sq * d_sq),
            "rsi": h / d_sq,
            "eb": np.sqrt(g_sq / d_sq),
            "lolr": h / g_sq,
            "distance": np.sqrt(d_sq),
        }


def train(
    folder: Path,
    make: Callable[[nn.Module], Optimizer],
    *,
    n_seeds: int = 4,
    n_steps: int = 64,
    rate: Callable[[int], float] = lambda _step: 1.0,
    intervene: Intervene = lambda *_: None,
    widths: Sequence[int] = (16, 40, 4),
    **options: Any,
) -> Seeded:
    """Train a small net on noise, with 16 steps per epoch by default; `intervene` acts after steps."""
    torch.manual_seed(1)
    layers = [
        layer for n, m in pairwise(widths) for layer in (nn.Linear(n, m), nn.Tanh())
    ]
    model = nn.Sequential(*layers[:-1])
    inputs, targets = torch.randn(256, widths[0]), torch.randn(256, widths[-1])
    optimizer = make(model)
    first = [group["lr"] for group in optimizer.param_groups]
    sizes = {"sketch_bits": 1024, "probes": 256}
    options = sizes | {"steps_per_epoch": 16, "total_steps": n_steps} | options
    recorders = [
        Recorder(
            folder / f"{seed}.zarr",
            model,
            optimizer,
            seed=seed,
            **options,
        )
        for seed in range(n_seeds)
    ]
    parameters = list(model.parameters())
    x, g = [flat(parameters)], []
    for step in range(n_steps):
        for group, lr in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = lr * rate(step)
        batch = torch.randint(256, (16,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(inputs[batch]) - targets[batch]).square().mean().backward()
        g.append(flat([p.grad for p in parameters]))
        optimizer.step()
        if step < n_steps - 1:
            with torch.no_grad():
                intervene(step, model, optimizer)
        x.append(flat(parameters))
    for recorder in recorders:
        recorder.close()
    runs = [open_run(folder / f"{seed}.zarr") for seed in range(n_seeds)]
    return Seeded(runs, np.array(x), np.array(g), [p.numel() for p in parameters])


def flat(tensors: Sequence[Any]) -> Array:
    """Return tensors as one float64 vector."""
    whole: Array = torch.cat([t.detach().reshape(-1) for t in tensors]).double().numpy()
    return whole
