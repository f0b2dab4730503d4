"""Test descent whose updates are as small as the rounding errors of its parameters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

import analyzers
from trajstore import Recorder, open_run

STEPS_PER_EPOCH, N_STEPS = 16, 96
MIDDLE = slice(STEPS_PER_EPOCH, N_STEPS - STEPS_PER_EPOCH)
SIZE = 500


class Wells(nn.Module):
    """A quadratic with two tensors; the gradients of the second are small."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(SIZE, generator=generator))
        self.second = nn.Parameter(torch.randn(SIZE, generator=generator))
        self.curvatures = torch.rand(2, SIZE, generator=generator) + 0.1

    def forward(self) -> Tensor:
        first, second = self.curvatures * torch.stack([self.first, self.second]) ** 2
        loss: Tensor = first.sum() + 2e-5 * second.sum()
        return loss


@pytest.mark.parametrize("lr", [0.01, 0.1])
def test_errors_by_layer_are_honest(tmp_path: Path, lr: float):
    model = Wells()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    x: list[list[Any]] = []
    gradients: list[list[Any]] = []
    with Recorder(
        tmp_path / "run.zarr",
        model,
        optimizer,
        steps_per_epoch=STEPS_PER_EPOCH,
        total_steps=N_STEPS,
    ):
        for _ in range(N_STEPS):
            optimizer.zero_grad()
            model().backward()
            x.append([p.detach().double().numpy().copy() for p in model.parameters()])
            found = [p.grad for p in model.parameters() if p.grad is not None]
            gradients.append([grad.double().numpy() for grad in found])
            optimizer.step()
    final = np.array([p.detach().double().numpy() for p in model.parameters()])
    to_target, g = np.array(x) - final, np.array(gradients)
    distance = np.linalg.norm(to_target, axis=2)
    gamma = (g * to_target).sum(2) / (np.linalg.norm(g, axis=2) * distance)
    geometry = analyzers.path_geometry(open_run(tmp_path / "run.zarr"), layers=True)
    geometry = geometry.compute(scheduler="sync")
    for name, exact in (("gamma", gamma), ("distance", distance)):
        # Errors below those of float32 are not stated. Errors repeat from step to step, so
        # these are a few values only.
        stderr = np.maximum(geometry[f"{name}_stderr"].values, 1e-6 * abs(exact))
        z = (geometry[name].values - exact) / stderr
        assert (abs(z[MIDDLE]) < 4).all(), name
