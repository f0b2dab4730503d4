"""Test ``analyzers._engine.arrays.geometry``."""

from typing import Any

import numpy as np
import pytest

from analyzers._engine.arrays.crowding import (
    bucket_densities,
    bucket_energies,
    interval_sums,
)
from analyzers._engine.arrays.geometry import (
    QUANTITIES,
    Estimate,
    Sampled,
    decayed,
    distance,
    geometry,
    quantities,
    sketch_variance,
)

H, SIGMA_H, D, SIGMA_D, G_SQ = -0.3, 0.02, 2.5, 0.01, 0.64


def defined(h: float, d: float, g_sq: float) -> dict[str, float]:
    """Return the quantities by their definitions; h is <g, x - x*>, d is |x - x*|."""
    rsi, eb = h / d**2, g_sq**0.5 / d
    return {
        "gamma": rsi / eb,
        "rsi": rsi,
        "eb": eb,
        "lolr": rsi / eb**2,
        "distance": d,
    }


def whole(numerator: Estimate, to_target: Estimate, gradient_sq: Any) -> dict[str, Any]:
    """Compute the quantities of gradients without weight decay."""
    sampled = Sampled(numerator, gradient_sq, np.zeros_like(gradient_sq))
    return geometry(
        quantities(sampled, to_target), sampled.numerator.stderr, to_target.stderr
    )


def estimate(value: float, stderr: float) -> Estimate:
    return Estimate(np.array([value]), np.array([stderr]))


@pytest.mark.parametrize("name", QUANTITIES)
def test_values_follow_the_definitions(name: str):
    result = whole(estimate(H, SIGMA_H), estimate(D, SIGMA_D), np.array([G_SQ]))
    np.testing.assert_allclose(result[name], defined(H, D, G_SQ)[name], rtol=1e-14)


@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize(
    ("sigma_h", "sigma_d"),
    [(SIGMA_H, SIGMA_D), (SIGMA_H, 0.0), (0.0, SIGMA_D), (0.0, 0.0)],
    ids=["both", "numerator", "distance", "exact"],
)
def test_errors_propagate_to_first_order(name: str, sigma_h: float, sigma_d: float):
    """Compare with derivatives from central differences."""
    result = whole(estimate(H, sigma_h), estimate(D, sigma_d), np.array([G_SQ]))
    t = 1e-5

    def slope(dh: float, dd: float) -> float:
        above = defined(H + t * dh, D + t * dd, G_SQ)[name]
        below = defined(H - t * dh, D - t * dd, G_SQ)[name]
        return (above - below) / (2 * t)

    expected = np.hypot(slope(1, 0) * sigma_h, slope(0, 1) * sigma_d)
    # The tolerance covers rounding, 1e-16 / t, and the third derivative times t squared.
    np.testing.assert_allclose(
        result[f"{name}_stderr"], expected, rtol=1e-8, atol=1e-12
    )


def test_standard_errors_are_positive_for_negative_values():
    result = whole(estimate(-1, 0.1), estimate(2, 0.1), np.array([1.0]))
    assert all(result[f"{name}_stderr"] > 0 for name in QUANTITIES)


@pytest.mark.parametrize(
    ("d", "g_sq", "nan"),
    [
        (2.0, 0.0, {"gamma", "lolr"}),
        (0.0, 1.0, {"gamma", "rsi", "eb"}),
        (0.0, 0.0, {"gamma", "rsi", "eb", "lolr"}),
        (np.nan, 1.0, {"gamma", "rsi", "eb", "distance"}),
        (2.0, np.nan, {"gamma", "eb", "lolr"}),
    ],
    ids=["g = 0", "D = 0", "both 0", "D is NaN", "g is NaN"],
)
def test_quantities_over_a_norm_of_zero_are_nan(d: float, g_sq: float, nan: set[str]):
    result = whole(estimate(0, 0), estimate(d, 0), np.array([g_sq]))
    assert {name for name in QUANTITIES if np.isnan(result[name][0])} == nan


def test_values_are_finite_at_the_edges_of_float32():
    result = whole(
        estimate(1e-25, 1e-26), estimate(1e-15, 0), np.array([1e-20], np.float64)
    )
    np.testing.assert_allclose(result["gamma"], [1.0], rtol=1e-12)


def test_distance_equals_the_distance_between_two_vectors():
    rng = np.random.default_rng(0)
    a, v = rng.normal(size=(5, 30)), rng.normal(size=30)
    result = distance(
        (a**2).sum(1), Estimate(a @ v, np.full(5, 0.1)), np.asarray((v**2).sum())
    )
    expected = np.linalg.norm(a - v, axis=1)
    np.testing.assert_allclose(result.value, expected, rtol=1e-13)
    # D^2 = |a|^2 - 2 <a, v> + |v|^2, so an error e of <a, v> changes D by e / D.
    np.testing.assert_allclose(result.stderr, 0.1 / expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("product", "expected"), [(100.0, 1.0), (-100.0, 5.0)], ids=["parallel", "opposite"]
)
def test_distance_obeys_the_triangle_inequality(product: float, expected: float):
    """For any noise, | |a| - |v| | <= D <= |a| + |v|."""
    result = distance(np.array([4.0]), estimate(product, 1), np.array(9.0))
    np.testing.assert_allclose(result.value, [expected], rtol=1e-13)


def test_distance_to_the_point_itself_is_zero():
    result = distance(np.array([4.0]), estimate(4, 0), np.array(4.0))
    np.testing.assert_array_equal(result.value, [0])
    np.testing.assert_array_equal(result.stderr, [0])


LAYOUTS = [
    pytest.param([7], 5, id="one tensor"),
    pytest.param([3], 11, id="shorter than a row"),
    pytest.param([4, 13, 1, 26], 7, id="several rows, borders inside"),
    pytest.param([5, 5, 5, 0, 5], 5, id="whole rows, and nothing"),
]


@pytest.mark.parametrize(("sizes", "width"), LAYOUTS)
def test_variance_is_the_sum_over_pairs_of_elements_in_a_bucket(
    sizes: list[int], width: int
):
    rng = np.random.default_rng(0)
    n = np.array(sizes)
    offsets = np.cumsum(n) - n
    layer = np.repeat(np.arange(len(n)), n)
    bucket = np.arange(n.sum()) % width
    gradient_sq, u_sq = rng.random((3, len(n))), rng.random(n.sum())

    # All elements of a layer have the same energy.
    density = (gradient_sq / np.maximum(n, 1))[:, layer]
    expected = np.zeros((3, len(n)))
    for i in range(n.sum()):
        for j in range(n.sum()):
            if bucket[i] == bucket[j] and i != j:
                expected[:, layer[i]] += density[:, j] * u_sq[i]
    residual_sq = np.bincount(layer, u_sq, len(n))
    code = (np.pi / 2 - 1) / 64 * np.outer(gradient_sq.sum(1), residual_sq)

    n_rows = -(-n.sum() // width)
    rows = np.pad(u_sq, (0, n_rows * width - n.sum())).reshape(n_rows, width)
    # Rows may come in pieces.
    sums = interval_sums(rows, offsets, n)
    energies = bucket_energies(sums[:1], 0, offsets, n, width)
    energies += bucket_energies(sums[1:], 1, offsets, n, width)
    energy = energies.sum(1)
    np.testing.assert_allclose(energy, residual_sq, rtol=1e-12)
    densities = bucket_densities(gradient_sq / np.maximum(n, 1), offsets, n, width)
    crowd = (energies @ densities.T).T
    result = sketch_variance(
        gradient_sq, energy, crowd, n, code_variance=(np.pi / 2 - 1) / 64
    )
    np.testing.assert_allclose(result, expected + code, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_rows", [1, 2, 100])
def test_variance_over_even_buckets(n_rows: int):
    """The variance is (1 - 1 / n_rows + pi / 2 - 1) / bits times both energies."""
    size, offset = np.array([64 * n_rows]), np.array([0])
    squares = np.full((n_rows, 64), 5 / 64 / n_rows)
    gradient_sq = np.array([[2.0], [3.0]])
    densities = bucket_densities(gradient_sq / size, offset, size, 64)
    sums = interval_sums(squares, offset, size)
    crowd = (bucket_energies(sums, 0, offset, size, 64) @ densities.T).T
    result = sketch_variance(
        gradient_sq, np.array([5.0]), crowd, size, code_variance=(np.pi / 2 - 1) / 64
    )
    expected = (1 - 1 / n_rows + np.pi / 2 - 1) / 64 * 5 * gradient_sq
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def with_decay(distance: float, stderr: float, *, g: float, decay: float) -> Any:
    """Return the quantities at |x| = 3 and |x*| = 2, with a gradient along x."""
    to_target = estimate(distance, stderr)
    one = np.ones(1)
    sampled = decayed(
        Sampled(estimate(0.7 * g, 0.0), g**2 * one, 0 * one),
        to_target,
        param_sq=9 * one,
        known_radial=2.5 * one,
        grad_dot_param=3 * g * one,
        weight_decay=decay,
    )
    return geometry(
        quantities(sampled, to_target), sampled.numerator.stderr, to_target.stderr
    )


@pytest.mark.parametrize("name", ["gamma", "rsi", "eb", "lolr"])
def test_the_error_of_the_distance_enters_weight_decay_once(name: str):
    """Compare with the derivative by the distance from finite differences."""
    sigma, step = 1e-3, 1e-5
    found = with_decay(2.0, sigma, g=0.5, decay=0.4)
    above, below = (
        with_decay(2.0 + sign * step, 0.0, g=0.5, decay=0.4)[name] for sign in (1, -1)
    )
    expected = abs(above - below) / (2 * step) * sigma
    np.testing.assert_allclose(found[f"{name}_stderr"], expected, rtol=1e-4)


def test_the_cosine_of_pure_weight_decay_is_known():
    """With g = 0 and x* = 0 the direction is parallel to x."""
    to_target, nothing = estimate(3.0, 0.2), np.zeros(1)
    sampled = decayed(
        Sampled(estimate(0.0, 0.0), nothing, nothing),
        to_target,
        param_sq=np.array([9.0]),
        known_radial=np.array([4.5]),
        grad_dot_param=nothing,
        weight_decay=0.1,
    )
    result = geometry(
        quantities(sampled, to_target), sampled.numerator.stderr, to_target.stderr
    )
    np.testing.assert_allclose(result["gamma"], 1)
    np.testing.assert_allclose(result["gamma_stderr"], 0, atol=1e-12)
