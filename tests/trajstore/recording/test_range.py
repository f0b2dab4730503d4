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


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("scale", [1e-21, 1e-30, 1e22, 1e25])
def test_norms_that_float32_cannot_hold_are_nan(
    scale: float, exact: bool, tmp_path: Path
):
    with pytest.warns(UserWarning, match="norms of 12 gradients are NaN") as w:
        _, gamma = record(tmp_path / "run.zarr", scale, exact=exact)
    assert w[0].filename == __file__
    run = trajstore.open_run(tmp_path / "run.zarr")
    assert np.isnan(run.steps.grad_norm).all()
    assert np.isnan(run.steps.grad_dot_previous).all()
    geometry = path_geometry(run).compute()
    if exact:
        # The gradients themselves are in the range of float32.
        np.testing.assert_allclose(geometry.gamma, gamma, atol=1e-6)
    else:
        assert np.isnan(geometry.gamma).all()
        assert np.isnan(geometry.rsi).all()


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
    assert known.all() or any("gradients are NaN" in str(w.message) for w in told)
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
    gamma = geometry.gamma.sel(layer="0.weight")
    assert np.isnan(gamma).all()
    assert np.isfinite(path_geometry(run).compute().gamma).all()
