"""Recordings of float64 parameters, compared with values in float64."""

from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim

import trajstore
from analyzers import path_geometry
from trajstore.recording.recorder import Recorder

N_STEPS, PER_EPOCH = 60, 10


class Trained(NamedTuple):
    """A trained net, with its iterates and gradients as float64 vectors."""

    path: Path
    model: Any
    iterates: Any  # (step + 1, param)
    gradients: Any  # (step, param)
    gamma: Any  # (step,)
    distance: Any  # (step,)


class Training:
    """Least squares, which gradient descent solves to the last digit."""

    def __init__(self, scale: float = 1.0, n_inputs: int = 30) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(100, n_inputs, generator=generator).double()
        true = torch.randn(n_inputs, 1, generator=generator).double()
        self.targets = self.inputs @ true
        torch.manual_seed(1)
        self.model = nn.Linear(n_inputs, 1, bias=False).double()
        self.scale = scale
        self.optimizer = optim.SGD(
            self.model.parameters(), lr=0.3 / scale, momentum=0.3
        )
        self.iterates: list[Any] = []
        self.gradients: list[Any] = []

    def flat(self) -> Any:
        return self.model.weight.detach().numpy().reshape(-1).copy()

    def backward(self) -> None:
        self.optimizer.zero_grad()
        error = self.model(self.inputs) - self.targets
        (self.scale * error.square().mean()).backward()

    def take_steps(self, n: int) -> None:
        for _ in range(n):
            self.backward()
            self.iterates.append(self.flat())
            gradient: Any = self.model.weight.grad
            self.gradients.append(gradient.numpy().reshape(-1).copy())
            self.optimizer.step()

    def result(self, path: Path) -> Trained:
        x, g = np.array([*self.iterates, self.flat()]), np.array(self.gradients)
        d = x[:-1] - x[-1]
        distance = np.linalg.norm(d, axis=1)
        gamma = (g * d).sum(1) / distance / np.linalg.norm(g, axis=1)
        return Trained(path, self.model, x, g, gamma, distance)


def train(path: Path, scale: float = 1.0, **options: Any) -> Trained:
    training = Training(scale)
    with Recorder(
        path, training.model, training.optimizer, steps_per_epoch=PER_EPOCH, **options
    ):
        training.take_steps(N_STEPS)
    return training.result(path)


SCALES = [1.0, 1e-30, 1e25, 1e-60, 1e60]


@pytest.mark.parametrize("scale", SCALES)
def test_exact_recordings_are_exact(scale: float, tmp_path: Path):
    trained = train(tmp_path / "run.zarr", scale, exact=True)
    run = trajstore.open_run(trained.path)
    geometry = path_geometry(run).compute()
    np.testing.assert_allclose(geometry.gamma, trained.gamma, rtol=1e-12)
    np.testing.assert_allclose(geometry.distance, trained.distance, rtol=1e-12)
    np.testing.assert_array_equal(geometry.gamma_stderr, 0)
    assert trained.distance[-1] < 1e-6
    g, u = trained.gradients, np.diff(trained.iterates, axis=0)
    for name, vectors in {"grad_norm": g, "update_norm": u}.items():
        norms = np.linalg.norm(vectors, axis=1)
        np.testing.assert_allclose(run.steps[name], norms, rtol=1e-12)
    products = (g[1:] * g[:-1]).sum(1)
    recorded = run.steps.grad_dot_previous.sum("layer")[1:]
    largest = np.linalg.norm(g[1:], axis=1) * np.linalg.norm(g[:-1], axis=1)
    np.testing.assert_allclose(recorded / largest, products / largest, atol=1e-13)


@pytest.mark.parametrize("scale", SCALES)
def test_sketches_are_as_good_as_those_of_float32(scale: float, tmp_path: Path):
    trained = train(tmp_path / "run.zarr", scale)
    run = trajstore.open_run(trained.path)
    geometry = path_geometry(run).compute()
    # The codes have an error of 2e-5, relative to the anchor's distance from x*, which is up to
    # ten times that of x. That distance falls by nine orders of magnitude.
    np.testing.assert_allclose(geometry.gamma, trained.gamma, atol=1e-3)
    np.testing.assert_allclose(geometry.distance, trained.distance, rtol=1e-3)
    norms = np.linalg.norm(trained.gradients, axis=1)
    np.testing.assert_allclose(run.steps.grad_norm, norms, rtol=1e-12)


def test_folded_sketches_keep_to_their_errors(tmp_path: Path):
    path, torch_type = tmp_path / "run.zarr", torch.float64
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 300), nn.Tanh(), nn.Linear(300, 3))
    model.to(torch_type)
    inputs = torch.randn(40, 30, dtype=torch_type)
    targets = torch.randn(40, 3, dtype=torch_type)
    optimizer = optim.AdamW(model.parameters(), lr=0.002)
    x, g = [], []

    def flat(tensors: Any) -> Any:
        return torch.cat([t.detach().reshape(-1) for t in tensors]).numpy()

    with Recorder(
        path, model, optimizer, steps_per_epoch=20, sketch_bits=4096, probes=256
    ):
        for _ in range(120):
            optimizer.zero_grad()
            (model(inputs) - targets).square().mean().backward()
            x.append(flat(model.parameters()))
            g.append(flat(p.grad for p in model.parameters()))
            optimizer.step()
    d, gradients = np.array(x) - flat(model.parameters()), np.array(g)
    norms = np.linalg.norm(d, axis=1) * np.linalg.norm(gradients, axis=1)
    gamma = (d * gradients).sum(1) / norms
    run = trajstore.open_run(path)
    assert not run.spec.is_packed
    geometry = path_geometry(run).compute()
    z = (geometry.gamma - gamma) / geometry.gamma_stderr
    # 120 steps, of which those of a window share the residual.
    assert 0.6 < float(np.sqrt((z**2).mean())) < 1.6
    assert float(abs(geometry.gamma - gamma).max()) < 0.2


def test_vectors_are_kept_in_float64(tmp_path: Path):
    training, path = Training(), tmp_path / "run.zarr"
    with Recorder(path, training.model, training.optimizer, updates=True) as recorder:
        training.take_steps(5)
        recorder.snapshot("five")
        snapshot = training.flat()
        training.take_steps(5)
        recorder.measure("all")
    trained, run = training.result(path), trajstore.open_run(path)
    for reference, expected in {"final": training.flat(), "five": snapshot}.items():
        found = trajstore.parameters_at(run, reference)["weight"]
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found.reshape(-1), expected)
    assert run.steps.grad_sq.dtype == np.float64
    given = path_geometry(run, reference={"weight": training.model.weight}).compute()
    np.testing.assert_array_equal(given.gamma, path_geometry(run).compute().gamma)
    updates = run.measured("update").steps.grad_norm
    expected = np.linalg.norm(np.diff(trained.iterates, axis=0), axis=1)
    np.testing.assert_allclose(updates, expected, rtol=1e-12)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("journal", [False, True])
def test_a_resumed_recording_equals_an_uninterrupted_one(
    exact: bool, journal: bool, tmp_path: Path
):
    whole = train(tmp_path / "whole.zarr", exact=exact)
    training, path = Training(), tmp_path / "run.zarr"
    options: dict[str, Any] = {"steps_per_epoch": PER_EPOCH, "exact": exact}
    recorder = Recorder(
        path, training.model, training.optimizer, journal=journal, **options
    )
    training.take_steps(34)
    state = recorder.state_dict()
    assert state["previous_gradient"].dtype == torch.float64
    kept = training.flat(), deepcopy(training.optimizer.state_dict())
    training.take_steps(3)
    recorder.close()
    resumed = Training()
    resumed.model.weight.data.copy_(torch.from_numpy(kept[0])[None])
    resumed.optimizer.load_state_dict(kept[1])
    with Recorder(path, resumed.model, resumed.optimizer, resume=state, **options):
        resumed.take_steps(N_STEPS - 34)
    first, second = (trajstore.open_run(p) for p in (whole.path, path))
    for name in ("tables", "window"):
        rows = slice(0, N_STEPS)
        found, expected = (r.stored.rows(name, rows) for r in (second, first))
        np.testing.assert_array_equal(found, expected)
    gamma, expected = (path_geometry(run).compute().gamma for run in (second, first))
    np.testing.assert_array_equal(gamma, expected)


def test_a_state_of_another_precision_is_refused(tmp_path: Path):
    training = Training()
    recorder = Recorder(tmp_path / "run.zarr", training.model, training.optimizer)
    training.take_steps(3)
    state = recorder.state_dict()
    recorder.close()
    state["previous_gradient"] = state["previous_gradient"].float()
    with pytest.raises(ValueError, match=r"expected torch.float64 \(1024,\)"):
        Recorder(
            tmp_path / "run.zarr", training.model, training.optimizer, resume=state
        )


def test_recording_does_not_change_the_training(tmp_path: Path):
    recorded = train(tmp_path / "run.zarr")
    plain = Training()
    plain.take_steps(N_STEPS)
    np.testing.assert_array_equal(plain.flat(), recorded.iterates[-1])
