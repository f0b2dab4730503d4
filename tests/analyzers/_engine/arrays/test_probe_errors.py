"""Test ``analyzers._engine.arrays.probe_errors``."""

import numpy as np
import pytest

from analyzers._engine.arrays.displacement_product import (
    ProbedVectors,
    Product,
    displacement_product,
)
from analyzers._engine.arrays.probe_errors import (
    MAX_GROUPS,
    correlated,
    correlation_of,
)

SIZE, STEPS, SHIFT = 7, 5, 1e-5


def estimated(
    a: np.ndarray, f: np.ndarray, v: np.ndarray, probes: np.ndarray
) -> Product:
    basis = np.eye(SIZE)[:1]
    a, f, v = (np.where(np.arange(SIZE) > 0, x, 0) for x in (a, f, v))

    def known(vectors: np.ndarray) -> ProbedVectors:
        return ProbedVectors((vectors**2).sum(-1), vectors @ basis.T, vectors @ probes)

    return displacement_product(
        known(a), known(basis), known(f), known(v), f_dot_v=float(f @ v)
    )


def derivatives(a: np.ndarray, f: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return derivatives of the products by ``P P^T - 1`` for the probes P, (step, size, size)."""
    result = np.empty((STEPS, SIZE, SIZE))
    for i in range(SIZE):
        for j in range(SIZE):
            change = np.zeros((SIZE, SIZE))
            change[i, j] += SHIFT / 2
            change[j, i] += SHIFT / 2
            above, below = (
                np.linalg.cholesky(np.eye(SIZE) + sign * change) for sign in (1, -1)
            )
            difference = (
                estimated(a, f, v, above).estimate.value
                - estimated(a, f, v, below).estimate.value
            )
            result[:, i, j] = difference / (2 * SHIFT)
    return result


@pytest.mark.parametrize("near", [0.0, 0.3, 3.0], ids=str)
@pytest.mark.parametrize("ahead", [0.0, 1.0], ids=["target aside", "target ahead"])
def test_covariances_are_those_of_gaussian_probes(near: float, ahead: float):
    """The target may lie near a step of the path, or ahead of its end."""
    rng = np.random.default_rng(0)
    path = rng.standard_normal((STEPS + 1, SIZE)).cumsum(0)
    a, f = path[:-1], path[-1]
    v = rng.standard_normal(SIZE) + near * path[STEPS // 2] + ahead * f
    slopes = derivatives(a, f, v)
    # The errors of n Gaussian probes have the covariance 2 / n times the product of derivatives.
    expected = 2 / SIZE * np.einsum("kij,lij->kl", slopes, slopes)
    found = estimated(a, f, v, np.eye(SIZE))
    stderr = found.estimate.stderr
    np.testing.assert_allclose(stderr**2, np.diagonal(expected), rtol=1e-4)
    correlation = found.correlation(slice(None), of_layers=False)
    covariance = stderr[:, None] * correlation.matrix * stderr
    np.testing.assert_allclose(covariance, expected, atol=1e-4 * expected.max())


def test_neighbours_in_long_windows_share_a_direction():
    n = 3 * MAX_GROUPS - 1
    turns = np.linspace(0, 2, n)
    vectors = np.stack([np.cos(turns), np.sin(turns)], 1)
    errors = np.random.default_rng(0).standard_normal((n, 2, 3))
    alone = np.linspace(0, 0.5, n)
    found = correlated(correlation_of(vectors, alone), errors)
    shares = np.sqrt(1 - alone)[:, None, None]
    expected = shares * np.tensordot(vectors @ vectors.T, shares * errors, 1)
    expected += alone[:, None, None] * errors
    # Neighbours turn by 1e-3.
    np.testing.assert_allclose(found, expected, atol=3e-3 * abs(expected).max())


def test_vectors_that_are_not_known_share_nothing():
    vectors = np.array([[1.0, 0.0], [np.nan, 1.0], [0.0, 0.0], [1.0, 0.0]])
    errors = np.array([[1.0], [2.0], [3.0], [4.0]])
    found = correlated(correlation_of(vectors), errors)
    np.testing.assert_allclose(found, [[5.0], [2.0], [3.0], [5.0]])
