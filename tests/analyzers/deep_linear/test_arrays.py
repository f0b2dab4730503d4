"""Test closed forms of deep linear networks against independent integrations."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad

from analyzers.deep_linear.arrays import (
    effective_rank,
    half_time,
    imbalance,
    mode_strength,
    time_of_steps,
)


def runge_kutta(strength: float, initial: float, depth: int, time: float) -> float:
    """Integrate the equation for a, rather than its root, in 20,000 steps of order 4."""
    n = 20_000
    h, a = time / n, initial

    def slope(a: float) -> float:
        return float(depth * a ** (2 - 2 / depth) * (strength - a))

    for _ in range(n):
        k1 = slope(a)
        k2 = slope(a + h / 2 * k1)
        k3 = slope(a + h / 2 * k2)
        k4 = slope(a + h * k3)
        a += h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return a


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(
    ("strength", "initial"), [(1.3, 0.02), (0.0, 0.3), (0.4, 0.9), (0.7, 0.7)]
)
def test_modes_solve_the_equation(depth: int, strength: float, initial: float):
    times = [0.0, 0.7, 2.9]
    found = mode_strength(times, strength=strength, initial=initial, depth=depth)
    expected = [runge_kutta(strength, initial, depth, t) for t in times]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_strength_inverts_the_time_to_reach_it(depth: int):
    """The time to reach a strength is the integral of dt/da up to the strength."""
    strength, initial = 0.8, 0.003
    for value in (0.01, 0.4, 0.79):
        time, _ = quad(
            lambda a: 1 / (depth * a ** (2 - 2 / depth) * (strength - a)),
            initial,
            value,
            epsabs=0,
            epsrel=1e-11,
            limit=500,
        )
        found = mode_strength(time, strength=strength, initial=initial, depth=depth)
        np.testing.assert_allclose(found, value, rtol=1e-7)


def test_two_layers_have_the_formula_of_saxe_et_al():
    t, strength, initial = np.linspace(0, 12, 7), 0.9, 1e-4
    expected = strength / (1 + (strength / initial - 1) * np.exp(-2 * strength * t))
    found = mode_strength(t, strength=strength, initial=initial)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_mode_has_half_of_its_strength_at_the_half_time(depth: int):
    time = half_time(strength=1.7, initial=0.05, depth=depth)
    found = mode_strength(time, strength=1.7, initial=0.05, depth=depth)
    np.testing.assert_allclose(found, 0.85, rtol=1e-8)


def test_half_time_of_two_layers_is_a_logarithm():
    expected = np.log(0.6 / 0.01 - 1) / 1.2
    assert half_time(strength=0.6, initial=0.01) == pytest.approx(expected, rel=1e-14)
    assert half_time(strength=0.6, initial=0.3) == 0
    assert half_time(strength=0.6, initial=0.7, depth=3) == 0


def test_modes_keep_the_shape_and_order_of_times():
    times = np.array([[3.0, 0.0], [1.0, 3.0]])
    found = mode_strength(times, strength=1.0, initial=0.1, depth=3)
    one_by_one = [
        mode_strength(t, strength=1.0, initial=0.1, depth=3) for t in times.ravel()
    ]
    np.testing.assert_allclose(found.ravel(), one_by_one, rtol=1e-9)
    assert mode_strength([], strength=1.0, initial=0.1, depth=3).shape == (0,)


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("initial", [0.0, -0.1])
def test_modes_of_the_opposite_sign_are_nan(depth: int, initial: float):
    found = mode_strength([0.0, 1.0], strength=1.0, initial=initial, depth=depth)
    assert np.isnan(found).all()
    single = mode_strength([0.0, 1.0], strength=1.0, initial=initial, depth=1)
    assert np.isfinite(single).all()


def descended(loss: str, depth: int, lr: float, steps: int) -> tuple[Any, Any]:
    """Minimise the given loss in float64 by autograd, from weights along two modes."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(2)
    n, n_in, n_out = 12, 6, 5
    normal = torch.randn(n, n_in, dtype=torch.float64)
    inputs = n**0.5 * torch.linalg.qr(normal)[0]
    strengths = torch.tensor([1.0, 0.5], dtype=torch.float64)
    left, right = (
        torch.linalg.qr(torch.randn(m, 2, dtype=torch.float64))[0]
        for m in (n_out, n_in)
    )
    targets = inputs @ (left * strengths @ right.T).T
    between = torch.linalg.qr(torch.randn(depth - 1, 4, 2, dtype=torch.float64))[0]
    bases = [right, *between, left]
    s = 0.02 ** (1 / depth)
    weights = [(s * out @ into.T).requires_grad_() for into, out in pairwise(bases)]
    for _ in range(steps):
        outputs = inputs
        for weight in weights:
            outputs = outputs @ weight.T
        if loss == "mean":
            value = torch.nn.functional.mse_loss(outputs, targets)
        elif loss == "sum":
            value = ((outputs - targets) ** 2).sum() / n
        else:
            value = ((outputs - targets) ** 2).sum() / (2 * n)
        gradients = torch.autograd.grad(value, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(lr * gradient)
    product = torch.eye(n_in, dtype=torch.float64)
    for weight in weights:
        product = weight.detach() @ product
    return (left.T @ product @ right).diagonal().numpy(), strengths.numpy()


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("loss", ["half-sum", "sum", "mean"])
def test_time_of_every_loss_matches_its_descent(loss: Any, depth: int):
    """Extrapolation from two step sizes is 50 times closer to the flow than either."""
    n_outputs, time = 5, 2.3
    factor = {"half-sum": 1, "sum": 2, "mean": 2 / n_outputs}[loss]
    coarse, fine = 150, 300
    (a, strengths), (b, _) = (
        descended(loss, depth, time / factor / n, n) for n in (coarse, fine)
    )
    lr = time / factor / fine
    t = time_of_steps(lr, fine, loss=loss, n_outputs=n_outputs)
    expected = [
        mode_strength(t, strength=v, initial=0.02, depth=depth) for v in strengths
    ]
    np.testing.assert_allclose(2 * b - a, expected, rtol=5e-4)
    # A wrong convention would cause a far larger error in time.
    wrong = mode_strength(2 * t, strength=1.0, initial=0.02, depth=depth)
    assert abs(wrong - b[0]) > 0.05


def test_time_takes_changing_rates():
    rates = np.array([0.1, 0.1, 0.05])
    np.testing.assert_allclose(time_of_steps(rates, 1, loss="sum").sum(), 0.5)
    times = time_of_steps(0.1, [0, 10], loss="mean", n_outputs=5)
    np.testing.assert_allclose(times, [0, 0.4], rtol=1e-12)


def test_loss_must_be_known():
    with pytest.raises(ValueError, match=r"'mean' averages over outputs.*= None"):
        time_of_steps(0.1, 3, loss="mean")
    with pytest.raises(ValueError, match=r"one of \['half-sum', .*; got 'rmse'"):
        time_of_steps(0.1, 3, loss="rmse")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"depth": 0}, {"strength": -1.0}, {"time": [1.0, -2.0]}]
)
def test_modes_out_of_range_are_refused(change: dict[str, Any]):
    given: dict[str, Any] = {"strength": 1.0, "initial": 0.1, "depth": 2} | change
    time = given.pop("time", [1.0])
    with pytest.raises(ValueError, match="Expected a `depth` of at least 1"):
        mode_strength(time, **given)


@pytest.mark.parametrize("change", [{"depth": 0}, {"strength": 0.0}, {"initial": 0.0}])
def test_half_times_out_of_range_are_refused(change: dict[str, Any]):
    given: dict[str, Any] = {"strength": 1.0, "initial": 0.1, "depth": 2} | change
    with pytest.raises(ValueError, match="positive `strength` and `initial`; got"):
        half_time(**given)


def test_gradient_flow_conserves_the_imbalance():
    """A step of size h changes the imbalance by only h^2: it is constant along the flow."""
    rng = np.random.default_rng(3)
    shapes = [(4, 3), (5, 4), (2, 5)]
    weights = [rng.normal(size=shape) for shape in shapes]
    target = rng.normal(size=(2, 3))
    product = weights[2] @ weights[1] @ weights[0]
    error = product - target
    gradients = [
        (weights[2] @ weights[1]).T @ error,
        weights[2].T @ error @ weights[0].T,
        error @ (weights[1] @ weights[0]).T,
    ]
    before = imbalance(weights)
    assert [matrix.shape for matrix in before] == [(4, 4), (5, 5)]
    for h in (1e-4, 1e-5):
        moved = [w - h * g for w, g in zip(weights, gradients, strict=True)]
        changes = [
            abs(a - b).max() for a, b in zip(imbalance(moved), before, strict=True)
        ]
        assert max(changes) < 1e4 * h**2


def test_effective_rank_counts_equal_values():
    values = np.array([[1.0, 1.0, 1.0, 0.0], [5.0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(effective_rank(values), [3, 1, np.nan], rtol=1e-12)
    shares = np.array([0.7, 0.2, 0.1])
    entropy = -sum(p * np.log(p) for p in shares)
    np.testing.assert_allclose(effective_rank(4 * shares), np.exp(entropy), rtol=1e-12)
