"""A walk through an optimizer has the gamma that its rule implies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

import analyzers
import trajstore
from trajstore.evaluation import noise_gradients

Floats = npt.NDArray[np.float64]

N_STEPS = 40


def make_model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(90, 120), torch.nn.Linear(120, 50))


def record(
    path: Path, make_optimizer: Callable[..., Any], seed: int = 5
) -> trajstore.Run:
    """Record a run with a decaying rate whose gradients change their norm."""
    model = make_model()
    optimizer = make_optimizer(model.parameters())
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    generator = torch.Generator().manual_seed(seed)
    with trajstore.Recorder(path, model, optimizer, steps_per_epoch=20) as recorder:
        for step in range(N_STEPS):
            inputs = torch.randn(16, 90, generator=generator) * (1 + step % 3)
            optimizer.zero_grad()
            loss = model(inputs).square().mean()
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
            decay.step()
    return trajstore.open_run(path)


def record_walk(
    path: Path,
    run: trajstore.Run,
    make_optimizer: Callable[..., Any],
    seed: int = 0,
) -> trajstore.Run:
    model = make_model()
    optimizer = make_optimizer(model.parameters())
    options: dict[str, Any] = {"steps_per_epoch": 20, "exact": True}
    with trajstore.Recorder(path, model, optimizer, **options):
        for _ in noise_gradients(run, model, optimizer, seed=seed):
            optimizer.step()
    return trajstore.open_run(path)


def sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def adam(parameters: Any) -> Any:
    return torch.optim.Adam(parameters, lr=0.003)


def gamma_of_momentum(norms: Floats, rates: Floats, momentum: float) -> Floats:
    """Return gamma of orthogonal gradients of given norms, (step,)."""
    # updates[j, i] is the part of gradient i in update j.
    updates = np.zeros((len(norms), len(norms)))
    buffer = np.zeros(len(norms))
    for j, rate in enumerate(rates):
        buffer = momentum * buffer
        buffer[j] += 1
        updates[j] = rate * buffer
    left = np.cumsum(updates[::-1], axis=0)[::-1]  # x_k - x*, in gradients
    gamma: Floats = np.diag(left) * norms / np.sqrt((left**2 * norms**2).sum(1))
    return gamma


def test_gamma_of_momentum_is_that_of_its_recurrence(tmp_path: Path):
    run = record(tmp_path / "run.zarr", sgd)
    walk = record_walk(tmp_path / "walk.zarr", run, sgd)
    steps = run.steps[["grad_norm", "lr", "grad_sq"]].compute()
    moved = walk.steps[["grad_norm", "lr", "grad_sq"]].compute()
    np.testing.assert_allclose(moved.grad_norm, steps.grad_norm, rtol=1e-5)
    np.testing.assert_allclose(moved.grad_sq, steps.grad_sq, rtol=1e-5)
    np.testing.assert_array_equal(moved.lr, steps.lr)
    gamma = analyzers.path_geometry(walk).gamma.values
    expected = gamma_of_momentum(steps.grad_norm.values, steps.lr.values, 0.9)
    # Cosines of random directions of two matrices deviate by about 0.008.
    assert 0.003 < (gamma - expected).std() < 0.016
    assert abs(gamma - expected).max() < 0.05
    assert expected.min() < 0.06
    assert expected.max() > 0.5


def test_gamma_of_adam_is_that_of_another_walk(tmp_path: Path):
    run = record(tmp_path / "run.zarr", adam)
    walk = record_walk(tmp_path / "walk.zarr", run, adam)
    gamma = analyzers.path_geometry(walk).gamma.values
    norms = np.sqrt(run.steps["grad_sq"].values.astype(float))
    expected = gamma_of_adam(
        norms, run.steps["lr"].values, list(map(np.prod, walk.spec.shapes))
    )
    assert abs(gamma - expected).max() < 0.06
    assert abs(gamma - expected).mean() < 0.015


def gamma_of_adam(norms: Floats, rates: Floats, sizes: list[int]) -> Floats:
    """Walk through the rule of Adam, and return gamma, (step,)."""
    rng = np.random.default_rng(3)
    place = np.repeat(np.arange(len(sizes)), sizes)
    scales = norms / np.sqrt(sizes)
    gradients = rng.standard_normal((len(norms), sum(sizes))) * scales[:, place]
    mean = square = np.zeros(sum(sizes))
    points = [mean]
    for t, gradient in enumerate(gradients, start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        corrected = np.sqrt(square / (1 - 0.999**t)) + 1e-8
        points.append(points[-1] - rates[t - 1] * mean / (1 - 0.9**t) / corrected)
    away = np.array(points[:-1]) - points[-1]
    lengths = np.linalg.norm(gradients, axis=1) * np.linalg.norm(away, axis=1)
    gamma: Floats = (gradients * away).sum(1) / lengths
    return gamma


def test_seeds_give_other_walks_and_one_seed_the_same(tmp_path: Path):
    run = record(tmp_path / "run.zarr", sgd)
    ends = [
        trajstore.parameters_at(record_walk(tmp_path / f"{i}.zarr", run, sgd, seed))
        for i, seed in enumerate([0, 0, 1])
    ]
    first, same, other = (end["0.weight"] for end in ends)
    np.testing.assert_array_equal(first, same)
    assert np.linalg.norm(first - other) > 0.5 * np.linalg.norm(
        first - make_model()[0].weight.detach().numpy()
    )


def test_every_group_has_its_own_rate(tmp_path: Path):
    def groups(model: Any) -> Any:
        first, second = list(model.parameters())[:2], list(model.parameters())[2:]
        return torch.optim.SGD(
            [{"params": first, "lr": 0.1}, {"params": second, "lr": 0.01}]
        )

    model = make_model()
    optimizer = groups(model)
    with trajstore.Recorder(tmp_path / "run.zarr", model, optimizer, steps_per_epoch=2):
        for _ in range(2):
            model(torch.ones(4, 90)).square().mean().backward()
            optimizer.step()
    walker = make_model()
    moved = groups(walker)
    for group in moved.param_groups:
        group["lr"] = 7.0
    for _ in noise_gradients(trajstore.open_run(tmp_path / "run.zarr"), walker, moved):
        moved.step()
    assert [group["lr"] for group in moved.param_groups] == [0.1, 0.01]


def test_another_model_is_refused(tmp_path: Path):
    run = record(tmp_path / "run.zarr", sgd)
    other = torch.nn.Sequential(torch.nn.Linear(90, 120), torch.nn.Linear(120, 40))
    with pytest.raises(
        ValueError, match=r"1.weight of shape \(50, 120\).* \(40, 120\)"
    ):
        next(noise_gradients(run, other, sgd(other.parameters())))


def test_an_unknown_gradient_ends_the_walk(tmp_path: Path):
    model = make_model()
    optimizer = sgd(model.parameters())
    with trajstore.Recorder(tmp_path / "run.zarr", model, optimizer, steps_per_epoch=3):
        for scale in (1.0, float("nan"), 1.0):
            model(torch.ones(4, 90) * scale).square().mean().backward()
            optimizer.step()
    walker = make_model()
    steps = noise_gradients(
        trajstore.open_run(tmp_path / "run.zarr"), walker, optimizer
    )
    assert next(steps) == 0
    with pytest.raises(ValueError, match=r"gradient of step 1 is not finite"):
        next(steps)


def test_tensors_without_an_optimizer_get_the_same_noise(tmp_path: Path):
    run = record(tmp_path / "run.zarr", sgd)
    model = make_model()
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    walk = noise_gradients(run, tensors)
    for _ in zip(range(3), walk, strict=False):
        for value in tensors.values():
            value.sub_(0.1 * value.grad)
    expected = make_model()
    for _ in zip(range(3), noise_gradients(run, expected, []), strict=False):
        with torch.no_grad():
            for p in expected.parameters():
                p.sub_(0.1 * p.grad)
    for name, p in expected.named_parameters():
        np.testing.assert_array_equal(tensors[name], p.detach())
