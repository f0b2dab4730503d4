"""Steps that start at the target have no gamma, RSI and EB."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import trajstore
from analyzers import epoch_means, mid_run, path_geometry

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


def test_targets_that_are_no_iterate_leave_every_step(run: Path):
    for point in (
        trajstore.parameters_at(run, 3),
        trajstore.parameters_at(run, "here"),
    ):
        near = {"x": point["x"] * (1 + 1e-3 * np.arange(SIZE) / SIZE)}
        result = path_geometry(run, reference=near).compute()
        assert np.isfinite(result["gamma"]).all()
        assert "reference_step" not in result.attrs


@pytest.mark.parametrize(("name", "step"), [("here", 70), (3, 60), ("step:0", 0)])
def test_a_file_of_an_iterate_is_the_target_of_its_step(
    run: Path, tmp_path: Path, name: Any, step: int
):
    np.savez(tmp_path / "kept.npz", x=trajstore.parameters_at(run, name)["x"])
    named = path_geometry(run, reference=name).compute()
    found = path_geometry(run, reference=tmp_path / "kept.npz").compute()
    unknown = np.flatnonzero(np.isnan(found["gamma"]))
    assert unknown.tolist() == [step]
    assert found.attrs.get("reference_step") == named.attrs.get("reference_step")
    assert f"the iterate before step {step} of the run" in found.reference_note
    assert found.reference == "file kept.npz"
    for each in ("gamma", "distance"):
        middle = [float(mid_run(epoch_means(g))[each]) for g in (named, found)]
        assert middle[0] == pytest.approx(middle[1], rel=1e-6)


def test_the_end_of_a_shorter_copy_of_a_run_is_a_target_inside(tmp_path: Path):
    """Two tensors without a basis have two norms that show the step."""
    for n in (30, 45):
        x = torch.linspace(0, 1, 60, requires_grad=True)
        y = torch.linspace(-1, 0, 40, requires_grad=True)
        options: dict[str, Any] = {"basis": 0, "steps_per_epoch": 15, "total_steps": 45}
        with trajstore.Recorder(
            tmp_path / f"{n}.zarr", {"x": x, "y": y}, None, **options
        ) as recorder:
            for k in range(n):
                x.grad, y.grad = x.detach() + 0.1 * k, y.detach()
                with recorder.step(), torch.no_grad():
                    x -= 0.1 * x.grad
                    y -= 0.1 * y.grad
    result = path_geometry(tmp_path / "45.zarr", reference=tmp_path / "30.zarr")
    assert (result.reference_step, result.reference_epoch) == (30, 2)
