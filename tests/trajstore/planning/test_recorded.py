"""Test that plans extrapolate from the errors of a recorded run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import analyzers
from trajstore.cli.plan import plan
from trajstore.planning.estimate import plan_recording
from trajstore.planning.measured import RUN_SPREAD
from trajstore.planning.recorded import optimizer_of, recorded_errors
from trajstore.reading.run import Run, open_run
from trajstore.recording.recorder import Recorder

EPOCH, STEPS = 20, 120


def record(path: Path, optimizer: str = "SGD", **options: Any) -> Run:
    """Train a small network for six epochs."""
    torch.manual_seed(0)
    nn = torch.nn
    model = nn.Sequential(nn.Linear(20, 150), nn.Tanh(), nn.Linear(150, 20))
    settings = {"momentum": 0.9} if options.pop("momentum", False) else {}
    steps = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01, **settings)
    lengths: dict[str, Any] = {"steps_per_epoch": EPOCH, "total_steps": STEPS}
    with Recorder(path, model, steps, **lengths, **options):
        for _ in range(STEPS):
            steps.zero_grad()
            x = torch.randn(8, 20)
            (model(x) - x.sin()).square().mean().backward()
            steps.step()
    return open_run(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run with a small sketch."""
    path = tmp_path_factory.mktemp("like") / "run.zarr"
    return record(path, sketch_bits=2048)


def test_a_plan_of_the_same_recording_has_the_errors_of_the_run(run: Run):
    geometry = analyzers.path_geometry(run).compute()
    inside = (geometry.epoch > 0) & (geometry.epoch < 5)
    step = np.sqrt((geometry.gamma_stderr[inside] ** 2).mean())
    means = analyzers.epoch_means(geometry).compute().gamma_stderr[1:-1]
    planned = plan_recording(
        run.layout,
        n_steps=STEPS,
        steps_per_epoch=EPOCH,
        sketch_bits=2048,
        optimizer="sgd",
        like=recorded_errors(run, rate="constant"),
    )
    assert planned.spec.total_steps == run.spec.total_steps
    low, typical, high = planned.stderr()
    np.testing.assert_allclose(typical, step, rtol=1e-6)
    # Another run of the same network differs.
    np.testing.assert_allclose([typical / low, high / typical], RUN_SPREAD, rtol=1e-6)
    mean = np.sqrt((means**2).mean())
    found = planned.stderr(mean_of=EPOCH).typical
    np.testing.assert_allclose(found, mean, rtol=1e-6)


def test_errors_with_more_signs_are_those_of_a_recording(run: Run, tmp_path: Path):
    like = recorded_errors(run, rate="constant")
    other = record(tmp_path / "run.zarr", sketch_bits=8192)
    planned = plan_recording(
        run.layout,
        n_steps=STEPS,
        steps_per_epoch=EPOCH,
        sketch_bits=8192,
        optimizer="sgd",
        like=like,
    )
    measured = recorded_errors(other, rate="constant")
    step, mean = measured.errors.of(other.spec)
    low, typical, high = planned.stderr()
    assert low < typical < high < like.errors.of(run.spec).step
    assert typical == pytest.approx(step, rel=0.05)
    assert planned.stderr(mean_of=EPOCH).typical == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "sgd"),
        ({"momentum": True}, "momentum"),
        ({"optimizer": "Adam"}, "adaptive"),
    ],
)
def test_the_store_tells_the_kind_of_optimizer(
    options: dict[str, Any], kind: str, tmp_path: Path
):
    assert optimizer_of(record(tmp_path / "run.zarr", **options)) == kind


def test_an_exact_run_is_refused(tmp_path: Path):
    exact = record(tmp_path / "exact.zarr", exact=True)
    with pytest.raises(ValueError, match="recorded exactly"):
        recorded_errors(exact, rate="constant")


def test_a_run_that_has_not_ended_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Run, "has_final", False)
    with pytest.raises(ValueError, match="has not ended"):
        recorded_errors(run, rate="constant")


def test_the_command_needs_no_parameters(run: Run, capsys: pytest.CaptureFixture[str]):
    plan(steps=STEPS, steps_per_epoch=EPOCH, like=run.location)
    assert "extrapolated from the errors of the recorded run" in " ".join(
        capsys.readouterr().out.split()
    )
    plan(steps=STEPS, steps_per_epoch=EPOCH, like=run.location, json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["parameters"] == run.layout.n_params
    plan(steps=STEPS, like=run.location, stderr=1e-3)
