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

ROUNDING = 1e-8
"""Relative error of the norm of the target, which analyses compute."""


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
    stated = geometry.distance_stderr.values
    assert (error <= 6 * stated + ROUNDING * true).all()
    # Rounding has the same sign in many steps of a window, which has few independent errors.
    windows = open_run(path).steps.window.values
    # The last window is one step, whose stated error is below that of the target's norm.
    z = error / np.hypot(stated, ROUNDING * true)
    by_window = [np.sqrt(np.mean(z[windows == c] ** 2)) for c in np.unique(windows)]
    assert max(by_window) < 3
    assert error.max() <= 1e-5 * true.max()


def test_a_target_that_is_not_finite_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e20)
    with Recorder(tmp_path / "run.zarr", model, optimizer):
        for _ in range(8):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().mean().backward()
            optimizer.step()
    run = open_run(tmp_path / "run.zarr")
    with pytest.warns(UserWarning, match=r"is not finite \(the last iterate"):
        geometry = path_geometry(run)
    assert np.isnan(geometry.distance.compute()).all()
    # Rows that are finite do not show that the target is damaged.
    monkeypatch.setattr(
        "analyzers.geometry.path_geometry.nonfinite_target", lambda *_: ""
    )
    geometry = path_geometry(run)
    with pytest.warns(UserWarning, match="the target, 'final', is not finite"):
        assert np.isnan(geometry.distance.compute()).all()
