"""Full-batch descent on a tiny net, whose path is smooth: errors are as large as stated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from numpy.polynomial import chebyshev
from torch import nn

from analyzers import path_geometry
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder

N_STEPS = 400

ROUNDING = 2e-7
"""Relative error of distances that float32 leaves."""


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_distances_are_off_by_no_more_than_stated_errors_and_rounding(
    seed: int, momentum: float, tmp_path: Path
):
    torch.manual_seed(0)
    inputs = torch.linspace(-1, 1, 20)[:, None]
    targets = torch.from_numpy(chebyshev.chebval(inputs.numpy(), [0] * 5 + [1])).float()
    model = nn.Sequential(nn.Linear(1, 100), nn.Tanh(), nn.Linear(100, 1, bias=False))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1 * (1 - momentum), momentum=momentum
    )
    iterates = []

    def flat() -> Any:
        parts = [p.detach().double().reshape(-1) for p in model.parameters()]
        return torch.cat(parts).numpy()

    path = tmp_path / "run.zarr"
    with Recorder(path, model, optimizer, total_steps=N_STEPS, seed=seed):
        for _ in range(N_STEPS):
            optimizer.zero_grad()
            (0.5 * (model(inputs) - targets).square()).mean().backward()
            iterates.append(flat())
            optimizer.step()
    true = np.linalg.norm(np.array(iterates) - flat(), axis=1)
    geometry = path_geometry(open_run(path)).compute()
    error = np.abs(geometry.distance.values - true)
    assert (error <= 5 * geometry.distance_stderr.values + ROUNDING * true).all()
    assert error.max() <= 1e-5 * true.max()
