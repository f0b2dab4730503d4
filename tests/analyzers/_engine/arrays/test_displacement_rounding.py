"""Test the errors that rounded probes cause, where every element has a probe of its own."""

import numpy as np
import pytest

from analyzers._engine.arrays.collisions import Collisions, find_collisions
from analyzers._engine.arrays.displacement_product import (
    ProbedVectors,
    Product,
    displacement_product,
)
from analyzers._engine.arrays.probe_errors import correlated, correlation_of

SIZE, STEPS = 40, 400
SPACING = 2.0**-10
NO_BASIS = np.zeros((1, SIZE))


def collisions_of(f: np.ndarray, v: np.ndarray) -> Collisions:
    one = np.zeros(SIZE, int)
    return find_collisions(
        f, v, np.arange(SIZE), one, block=one, n_probes=SIZE, n_layers=0
    )


def known(vectors: np.ndarray, probes: np.ndarray) -> ProbedVectors:
    return ProbedVectors((vectors**2).sum(-1), vectors @ NO_BASIS.T, probes)


def estimated(a: np.ndarray, f: np.ndarray, v: np.ndarray) -> Product:
    """Estimate products from probes of `a` that are rounded to multiples of `SPACING`."""
    return displacement_product(
        known(a, np.rint(a / SPACING) * SPACING),
        known(NO_BASIS, NO_BASIS),
        known(f, f),
        known(v, v),
        f_dot_v=float(f @ v),
        collisions=collisions_of(f, v),
        rounding=np.full(a.shape, SPACING**2 / 12),
    )


@pytest.mark.parametrize("turn", [0.03, 0.3, 1.0], ids=str)
@pytest.mark.parametrize("near", [0.03, 1.0], ids=["v along a", "v anywhere"])
def test_rounding_errors_are_as_large_as_stated(turn: float, near: float):
    """The path turns by `turn` away from f; v lies by `near` off the path."""
    rng = np.random.default_rng(0)
    f, v, own = rng.standard_normal((3, SIZE))
    a = np.linspace(0.3, 0.8, STEPS)[:, None] * (f + turn * own)
    a += 0.02 * rng.standard_normal((STEPS, SIZE))
    v = a.mean(0) + near * v
    result = estimated(a, f, v)
    errors, stderr = result.estimate.value - a @ v, result.estimate.stderr
    # The rms of 400 independent numbers scatters by 0.035.
    assert np.sqrt(np.mean((errors / stderr) ** 2)) == pytest.approx(1, abs=0.12)
    np.testing.assert_allclose(result.alone, 1)


def test_errors_along_the_displacement_do_not_count():
    """A path along v has exact products, because its norm is exact."""
    rng = np.random.default_rng(1)
    v, f = rng.standard_normal((2, SIZE))
    a = np.linspace(0.3, 0.8, STEPS)[:, None] * v
    result = estimated(a, f, v)
    alone = SPACING * np.sqrt(v @ v / 12)
    assert (result.estimate.stderr < 0.2 * alone).all()
    errors = result.estimate.value - a @ v
    assert np.sqrt(np.mean(errors**2)) < 0.2 * alone


def test_a_rest_of_rounding_errors_is_not_larger_than_its_exact_norm():
    """Close to f, the probes of the rest of `a` are nothing but rounding errors."""
    rng = np.random.default_rng(2)
    f, v = rng.standard_normal((2, SIZE))
    a = f + 1e-6 * rng.standard_normal((STEPS, SIZE))
    result = estimated(a, f, v)
    largest = result.aside * np.linalg.norm(v)
    assert (result.estimate.stderr < 2 * largest).all()


def test_errors_of_one_step_are_not_shared_with_other_steps():
    rng = np.random.default_rng(3)
    vectors, errors = rng.standard_normal((2, 5, 7))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alone = np.array([0.0, 1.0, 0.5, 0.25, 1.0])
    shares = np.sqrt(1 - alone)
    correlation = shares[:, None] * (unit @ unit.T) * shares + np.diag(alone)
    found = correlated(correlation_of(vectors, alone), errors)
    np.testing.assert_allclose(found, correlation @ errors)
