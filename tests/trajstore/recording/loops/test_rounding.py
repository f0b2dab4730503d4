"""Parameters of float64 in recordings of float32, as earlier versions began them."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim

from trajstore.reading.run import open_run
from trajstore.recording.options import RecorderOptions
from trajstore.recording.recorder import Recorder


@pytest.mark.parametrize("exact", [False, True])
def test_values_that_rounding_has_eaten_are_nan(
    exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_spec = RecorderOptions.run_spec
    monkeypatch.setattr(
        RecorderOptions,
        "run_spec",
        lambda options, *args, **_: run_spec(options, *args),
    )
    x = nn.Parameter(torch.linspace(-1, 2, 30, dtype=torch.float64))
    optimizer, iterates = optim.SGD([x], lr=0.2), []
    recorder = Recorder(tmp_path / "run", {"x": x}, optimizer, exact=exact)
    for _ in range(60):
        optimizer.zero_grad()
        (x - 0.5).square().sum().backward()
        iterates.append(x.detach().numpy().copy())
        optimizer.step()
    with pytest.warns(UserWarning, match="does not resolve") as w:
        recorder.close()
    assert w[0].filename == __file__
    steps = open_run(tmp_path / "run").steps
    moved = np.linalg.norm(np.diff([*iterates, x.detach().numpy()], axis=0), axis=1)
    known = np.isfinite(steps.update_norm.values)
    assert 15 < known.sum() < 40
    np.testing.assert_allclose(steps.update_norm[known], moved[known], rtol=0.02)
    assert np.isfinite(steps.grad_norm).all()


def test_small_updates_of_float32_are_known(tmp_path: Path):
    x = nn.Parameter(torch.ones(30))
    optimizer = optim.SGD([x], lr=2.0**-23)
    with Recorder(tmp_path / "run", {"x": x}, optimizer):
        x.sum().backward()
        optimizer.step()
    steps = open_run(tmp_path / "run").steps
    np.testing.assert_allclose(steps.update_norm, [2.0**-23 * 30**0.5], rtol=1e-6)
