"""Gradients whose squares float32 cannot hold."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim

import trajstore
from analyzers import path_geometry
from trajstore.recording.recorder import Recorder

N_STEPS = 12

OPTIONS: list[dict[str, Any]] = [
    {},
    {"exact": True},
    {"sketch_bits": 64},
    {"basis": 0, "updates": True},
]


def record(
    path: Path, scale: float, *, dtype: Any = torch.float32, **options: Any
) -> tuple[Any, Any]:
    """Train a net on a scaled loss; return norms of gradients, and gamma, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 3)).to(dtype)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.randn(16, 8, dtype=dtype)
    x, g = [], []

    def flat(tensors: Any) -> Any:
        parts = [t.detach().double().reshape(-1) for t in tensors]
        return torch.cat(parts).numpy()

    with Recorder(path, model, optimizer, steps_per_epoch=4, **options):
        for _ in range(N_STEPS):
            optimizer.zero_grad()
            (model(inputs).square().mean() - model(inputs).mean()).backward()
            before = flat(p.grad for p in model.parameters())
            for p in model.parameters():
                assert p.grad is not None
                p.grad.mul_(scale)
            x.append(flat(model.parameters()))
            g.append(flat(p.grad for p in model.parameters()))
            # The path does not depend on the scale.
            optimizer.param_groups[0]["lr"] = min(
                0.1 / scale, 1e4 if dtype == torch.float16 else 1e30
            )
            optimizer.step()
            assert before.any()
    d, gradients = np.array(x) - flat(model.parameters()), np.array(g)
    norms = np.linalg.norm(gradients, axis=1)
    with np.errstate(invalid="ignore"):
        gamma = (d * gradients).sum(1) / np.linalg.norm(d, axis=1) / norms
    return norms, gamma


@pytest.mark.parametrize("backend", ["", "eager"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("scale", [1e-21, 1e-30, 1e22, 1e25, 1e30])
def test_norms_that_float32_cannot_hold_are_stored_with_powers_of_two(
    scale: float,
    options: dict[str, Any],
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TRAJSTORE_BACKEND", backend)
    norms, gamma = record(tmp_path / "run.zarr", scale, **options)
    run = trajstore.open_run(tmp_path / "run.zarr")
    assert not any(name.startswith("exponent") for name in run.metrics)
    steps = run.steps.compute()
    np.testing.assert_allclose(steps.grad_norm, norms, rtol=1e-6)
    np.testing.assert_allclose(steps.grad_sq.sum("layer"), norms**2, rtol=1e-6)
    cosines = steps.grad_dot_previous.sum("layer")[1:] / norms[1:] / norms[:-1]
    assert (np.abs(cosines) <= 1 + 1e-6).all()
    assert (cosines > 0.5).all()
    geometry = path_geometry(run).compute()
    error = np.abs(geometry.gamma - gamma)
    assert (error <= 6 * geometry.gamma_stderr + 1e-5).all()
    assert np.isfinite(geometry.rsi).all()


@pytest.mark.parametrize("backend", ["", "eager"])
@pytest.mark.parametrize("bits", [64, 65536])
@pytest.mark.parametrize("scale", [1e-36, 1e38])
def test_sketches_out_of_range_are_nan_and_told_of(
    scale: float,
    bits: int,
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TRAJSTORE_BACKEND", backend)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        norms, gamma = record(tmp_path / "run.zarr", scale, sketch_bits=bits)
    run = trajstore.open_run(tmp_path / "run.zarr")
    np.testing.assert_allclose(run.steps.grad_norm, norms, rtol=1e-5)
    geometry = path_geometry(run).compute()
    is_lost = np.isnan(geometry.gamma)
    if n_lost := int(is_lost.sum()):
        assert f"{n_lost} gradients left the range" in str(told[0].message)
        assert told[0].filename == __file__
    assert n_lost == 12 or scale > 1
    error = np.abs(geometry.gamma - gamma)
    assert (is_lost | (error <= 6 * geometry.gamma_stderr + 1e-5)).all()


@pytest.mark.parametrize("resumed_at", [3, 6])
def test_resuming_and_journals_keep_powers_of_two(resumed_at: int, tmp_path: Path):
    def train(path: Path, stops: list[int], **options: Any) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 3))
        optimizer = optim.SGD(model.parameters(), lr=1e29)
        inputs, resume, step = torch.randn(16, 8), dict[str, Any](), 0
        for stop in stops:
            with Recorder(
                path, model, optimizer, steps_per_epoch=4, seed=1, **resume, **options
            ) as recorder:
                while step < stop:
                    optimizer.zero_grad()
                    (1e-30 * model(inputs).square().mean()).backward()
                    optimizer.step()
                    step += 1
                resume = {"resume": recorder.state_dict()}

    train(tmp_path / "whole.zarr", [9])
    train(tmp_path / "resumed.zarr", [resumed_at, 9])
    train(tmp_path / "journal.zarr", [9], journal=True)
    whole, resumed, journal = (
        trajstore.open_run(tmp_path / f"{name}.zarr")
        for name in ("whole", "resumed", "journal")
    )
    for name in ("grad_sq", "grad_dot_previous", "grad_norm", "param_sq"):
        for other in (resumed, journal):
            np.testing.assert_array_equal(other.steps[name], whole.steps[name])
    np.testing.assert_array_equal(resumed.windows.weights, whole.windows.weights)


def test_the_path_of_scaled_gradients_has_the_same_geometry(tmp_path: Path):
    # A power of two changes no digit of the parameters.
    geometries = []
    for power in (0, -100, 90):
        path = tmp_path / f"{power}.zarr"
        record(path, 2.0**power, sketch_bits=64)
        geometries.append(path_geometry(trajstore.open_run(path)).compute())
    for geometry in geometries[1:]:
        for name in ("gamma", "gamma_stderr", "distance"):
            np.testing.assert_allclose(
                geometry[name], geometries[0][name], rtol=0.1, atol=1e-3
            )


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("scale", [1e-18, 1e-21, 1e-30, 1e25])
def test_float64_holds_them(scale: float, exact: bool, tmp_path: Path):
    path = tmp_path / "run.zarr"
    norms, gamma = record(path, scale, exact=exact, float64=True)
    run = trajstore.open_run(path)
    np.testing.assert_allclose(run.steps.grad_norm, norms, rtol=1e-12)
    geometry = path_geometry(run).compute()
    np.testing.assert_allclose(geometry.gamma, gamma, atol=1e-12 if exact else 1e-4)


def test_norms_just_inside_the_range_are_right(tmp_path: Path):
    norms, gamma = record(tmp_path / "run.zarr", 1e-16)
    run = trajstore.open_run(tmp_path / "run.zarr")
    np.testing.assert_allclose(run.steps.grad_norm, norms, rtol=1e-6)
    geometry = path_geometry(run).compute()
    np.testing.assert_allclose(geometry.gamma, gamma, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6, 1e-30])
def test_half_precision_is_right_or_told_of(dtype: str, scale: float, tmp_path: Path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        norms, gamma = record(tmp_path / "run.zarr", scale, dtype=getattr(torch, dtype))
    run = trajstore.open_run(tmp_path / "run.zarr")
    recorded = run.steps.grad_norm.values
    known = np.isfinite(recorded)
    np.testing.assert_allclose(recorded[known], norms[known], rtol=1e-6)
    assert known.all()
    assert not told
    geometry = path_geometry(run).compute()
    known = np.isfinite(geometry.gamma.values) & np.isfinite(gamma)
    np.testing.assert_allclose(geometry.gamma[known], gamma[known], atol=1e-3)


@pytest.mark.parametrize("exact", [False, True])
def test_a_gradient_of_zero_has_the_norm_zero(exact: bool, tmp_path: Path):
    x = nn.Parameter(torch.ones(20))
    optimizer = optim.SGD([x], lr=0.1)
    with Recorder(tmp_path / "run.zarr", {"x": x}, optimizer, exact=exact):
        for factor in (1.0, 0.0, 1.0):
            optimizer.zero_grad()
            (factor * x).sum().backward()
            optimizer.step()
    norms = trajstore.open_run(tmp_path / "run.zarr").steps.grad_norm
    np.testing.assert_allclose(norms, 20**0.5 * np.array([1, 0, 1]), rtol=1e-6)


def test_a_layer_whose_gradient_vanishes_leaves_the_others(tmp_path: Path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 3))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    inputs, norms = torch.randn(16, 8), []
    with Recorder(tmp_path / "run.zarr", model, optimizer):
        for _ in range(5):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            first: Any = model[0].weight
            first.grad.mul_(1e-30)
            gradients: list[Any] = [p.grad for p in model.parameters()]
            norms.append([float(g.double().norm()) for g in gradients])
            optimizer.step()
    run = trajstore.open_run(tmp_path / "run.zarr")
    np.testing.assert_allclose(
        run.steps.grad_norm, np.linalg.norm(norms, axis=1), rtol=1e-6
    )
    geometry = path_geometry(run, layers=True).compute()
    squares = run.steps.grad_sq.sel(layer="0.weight")
    np.testing.assert_allclose(np.sqrt(squares), np.array(norms)[:, 0], rtol=1e-6)
    # Its parameters do not move, so there is no direction to x*.
    assert (geometry.distance.sel(layer="0.weight") == 0).all()
    assert np.isnan(geometry.gamma.sel(layer="0.weight")).all()
    assert np.isfinite(path_geometry(run).compute().gamma).all()
