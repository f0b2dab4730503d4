"""Steps that start at the target have no gamma, RSI and EB."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import trajstore
from analyzers import epoch_means, path_geometry

N_EPOCHS, LENGTH, SIZE = 6, 20, 50


@pytest.fixture(scope="module", params=[False, True], ids=["sketched", "exact"])
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path: Path = tmp_path_factory.mktemp("at-target") / "run"
    x = torch.ones(SIZE, dtype=torch.float64, requires_grad=True)
    scale = torch.logspace(-2, 0, SIZE, dtype=torch.float64)
    options: dict[str, Any] = {
        "steps_per_epoch": LENGTH,
        "total_steps": N_EPOCHS * LENGTH,
    }
    with trajstore.Recorder(
        path, {"x": x}, None, exact=request.param, **options
    ) as recorder:
        for k in range(N_EPOCHS * LENGTH):
            if k == 70:
                recorder.snapshot("here")
            x.grad = scale * x.detach()
            with recorder.step(), torch.no_grad():
                x -= 0.1 * x.grad
    return path


@pytest.mark.parametrize(
    ("reference", "step"), [(3, 60), ("step:60", 60), ("here", 70)]
)
@pytest.mark.parametrize("layers", [False, True])
def test_the_step_at_the_target_is_missing(
    run: Path, reference: int | str, step: int, layers: bool
):
    result = path_geometry(run, reference=reference, layers=layers).compute()
    for name in ("gamma", "rsi", "eb"):
        unknown = np.flatnonzero(np.isnan(result[name].values.reshape(120, -1)[:, 0]))
        assert unknown.tolist() == [step], name
        assert np.isnan(result[f"{name}_stderr"].sel(step=step)).all()
    assert np.isfinite(result["distance"]).all()
    assert np.isfinite(result["lolr"]).all()
    means = epoch_means(result)
    missing = means["n_missing"].values.reshape(N_EPOCHS, -1)[:, 0]
    assert missing.tolist() == [0, 0, 0, 1, 0, 0]
    # Without the step at x*, the mean is that of the other steps, which the path determines.
    scale = np.logspace(-2, 0, SIZE)
    x = np.array([(1 - 0.1 * scale) ** k for k in range(120)])
    target = trajstore.parameters_at(run, reference)["x"]
    d, g = x - target, scale * x
    gamma = (g * d).sum(1) / np.linalg.norm(g, axis=1) / np.linalg.norm(d, axis=1)
    of_epoch = [k for k in range(60, 80) if k != step]
    mean = float(means["gamma"].sel(epoch=3).squeeze())
    assert mean == pytest.approx(gamma[of_epoch].mean(), abs=1e-3)


def test_targets_of_other_runs_leave_every_step(run: Path, tmp_path: Path):
    other = {"x": trajstore.parameters_at(run, 3)["x"]}
    result = path_geometry(run, reference=other).compute()
    assert np.isfinite(result["gamma"]).all()
