"""Test ``analyzers.conditions.arrays`` by enumeration and with a linear program."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from analyzers.conditions import arrays
from analyzers.conditions.arrays import (
    Boundary,
    Steps,
    feasible,
    smallest_margin,
    upper_envelope,
)

Array = np.ndarray[Any, np.dtype[np.float64]]


def random_steps(seed: int, n: int) -> Steps:
    """Return steps with losses from 0 to 2 at x and x*, and products of either sign."""
    rng = np.random.default_rng(seed)
    loss, at_target = 2 * rng.random((2, n))
    loss[rng.random(n) < 0.1] = 0
    at_target[rng.random(n) < 0.05] = 0
    product = rng.normal(0.3, 0.5, n)
    return Steps(product, loss - at_target, loss)


def holds(steps: Steps, alpha: float, beta: float) -> bool:
    return all(a - alpha * c + beta * d >= 0 for a, c, d in zip(*steps, strict=True))


def lowest(found: Boundary, alpha: float) -> float:
    """Return beta of the boundary at alpha, infinity left of the first corner."""
    right = [i for i in range(len(found.alpha)) if found.alpha[i] <= alpha]
    if not right:
        return float("inf")
    i = right[-1]
    return float(found.beta[i] + found.slope[i] * (alpha - found.alpha[i]))


@pytest.mark.parametrize("n", [1, 2, 5, 40])
@pytest.mark.parametrize("seed", range(8))
def test_the_set_satisfies_every_inequality(seed: int, n: int):
    steps, gap = random_steps(seed, n), 0.1
    found = feasible(steps, gap)
    rng = np.random.default_rng(seed)
    pairs = [(a, b) for a in rng.exponential(3, 40) for b in rng.exponential(2, 40)]
    for corner in zip(found.alpha, found.beta, strict=True):
        near = np.array(corner) + rng.normal(0, 0.05, (40, 2))
        pairs += [(a, b) for a, b in near.tolist() if b >= 0]
    for alpha, beta in pairs:
        inside = alpha >= beta + gap and holds(steps, alpha, beta)
        is_found = lowest(found, alpha) <= beta <= alpha - gap
        assert inside == is_found, (alpha, beta)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60))
def test_corners_solve_a_linear_program(seed: int, n: int):
    """Minimise alpha + beta, and sums that give almost all weight to alpha or beta."""
    steps = random_steps(seed, n)
    found = feasible(steps, 0.1)
    inequalities = np.stack([steps.excess, -steps.gap], 1)
    inequalities = np.append(inequalities, [[-1, 1]], 0)
    bounds = np.append(steps.product, -0.1)
    for weights in ([1, 1], [1, 1e-3], [1e-3, 1], [1, 0.2]):
        solved = linprog(weights, inequalities, bounds, bounds=[(0, None), (0, None)])
        if solved.status == 2:
            assert len(found.alpha) == 0
            continue
        sums = weights[0] * found.alpha + weights[1] * found.beta
        assert sums.min() == pytest.approx(solved.fun, rel=1e-6, abs=1e-7)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 60))
def test_the_boundary_is_convex_and_belongs_to_its_planes(seed: int, n: int):
    steps = random_steps(seed, n)
    found = feasible(steps, 0.1)
    assert (np.diff(found.alpha) >= 0).all()
    assert (np.diff(found.slope) > 0).all()
    for alpha, beta, plane in zip(found.alpha, found.beta, found.plane, strict=True):
        if plane == arrays.NO_STEP:
            assert beta == 0
        else:
            a, c, d = (values[plane] for values in steps)
            scale = abs(a) + abs(alpha * c) + beta * d
            assert abs(a - alpha * c + beta * d) <= 1e-9 * scale + 1e-12


def test_a_set_known_by_hand():
    # T = -1 + alpha + beta, with l < r, and T = 2 - alpha + 2 beta.
    steps = Steps(np.array([-1.0, 2.0]), np.array([-1.0, 1.0]), np.array([1.0, 2.0]))
    found = feasible(steps, 0.2)
    np.testing.assert_allclose(found.alpha, [0.6, 1, 2])
    np.testing.assert_allclose(found.beta, [0.4, 0, 0], atol=1e-15)
    np.testing.assert_allclose(found.slope, [-1, 0, 0.5])
    np.testing.assert_array_equal(found.plane, [0, -1, 1])
    assert found.limit == 0


def test_steps_without_a_loss_bound_only_alpha():
    # T = -3 + 2 alpha for every beta.
    steps = Steps(np.array([-3.0]), np.array([-2.0]), np.array([0.0]))
    found = feasible(steps, 0.1)
    np.testing.assert_allclose([found.alpha[0], found.beta[0]], [1.5, 0])
    assert found.limit == 0


@pytest.mark.parametrize("gap", [1.0, 0.0])
def test_no_pair_satisfies_a_minimiser_at_x_star_with_a_negative_product(gap: float):
    # r = f*, and the product is negative: T = -1 - (alpha - beta) gap.
    harmless = [0.5, 0.5, 1.0]
    excluding = [-1.0, gap, gap]
    steps = Steps(*np.array([harmless, excluding, harmless]).T)
    found = feasible(steps, 0.1)
    assert (len(found.alpha), found.limit) == (0, 1)
    # With the product that the smallest gap requires, the set is not empty.
    sufficient = [0.1 * gap, gap, gap]
    assert len(feasible(Steps(*np.array([harmless, sufficient]).T), 0.1).alpha) > 0


@given(seed=st.integers(0, 10**6), n=st.integers(1, 30))
def test_the_envelope_is_the_largest_line(seed: int, n: int):
    rng = np.random.default_rng(seed)
    # Integers produce lines with equal slopes and lines that meet in one point.
    slopes, intercepts = rng.integers(-4, 5, (2, n)).astype(float)
    lines, kinks = upper_envelope(slopes, intercepts)
    assert len(kinks) == len(lines) - 1
    x = np.linspace(-20, 20, 401)
    expected = (slopes[:, None] * x + intercepts[:, None]).max(0)
    largest = lines[np.searchsorted(kinks, x)]
    np.testing.assert_allclose(slopes[largest] * x + intercepts[largest], expected)
    assert (np.diff(kinks) > 0).all()


def test_margins_are_the_smallest_of_all_steps(monkeypatch: pytest.MonkeyPatch):
    steps = random_steps(1, 50)
    alpha, beta = np.linspace(0, 3, 7), np.linspace(0, 2, 5)
    a, c, d = steps
    T = a - alpha[:, None, None] * c + beta[:, None] * d
    for block in (arrays.MAX_VALUES, 40):
        monkeypatch.setattr(arrays, "MAX_VALUES", block)
        margin, step = smallest_margin(steps, alpha, beta)
        np.testing.assert_allclose(margin, T.min(2), rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(step, T.argmin(2))
