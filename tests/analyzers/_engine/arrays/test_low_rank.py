"""Test ``analyzers._engine.arrays.low_rank``."""

import numpy as np
import pytest

from analyzers._engine.arrays.low_rank import RIDGE, regress


def gram(basis: np.ndarray) -> np.ndarray:
    products: np.ndarray = basis @ np.swapaxes(basis, -1, -2)
    return products


def test_coefficients_of_a_vector_in_the_basis_are_found():
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(3, 50))
    expected = np.array([2.0, -1.0, 0.5])
    # The ridge changes coefficients of order 1 by its own size, times the condition
    # number of the scaled Gram matrix, below 2 for these vectors.
    np.testing.assert_allclose(
        regress(gram(basis), basis @ (expected @ basis)), expected, rtol=1e-7
    )


def test_coefficients_solve_least_squares():
    rng = np.random.default_rng(1)
    basis, vectors = rng.normal(size=(3, 50)), rng.normal(size=(7, 50))
    expected, *_ = np.linalg.lstsq(basis.T, vectors.T, rcond=None)
    np.testing.assert_allclose(
        regress(gram(basis), vectors @ basis.T), expected.T, rtol=1e-6, atol=1e-8
    )


def test_layers_are_regressed_separately():
    rng = np.random.default_rng(2)
    basis, vectors = rng.normal(size=(4, 3, 50)), rng.normal(size=(4, 50))
    products = (basis @ vectors[..., None])[..., 0]
    expected = [
        np.linalg.solve(gram(s), b) for s, b in zip(basis, products, strict=True)
    ]
    np.testing.assert_allclose(
        regress(gram(basis), products), expected, rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e9], ids=str)
def test_coefficients_scale_inversely_with_the_basis(scale: float):
    """The ridge is added after scaling, or it would drown short vectors."""
    rng = np.random.default_rng(3)
    basis, vector = rng.normal(size=(2, 20)), rng.normal(size=20)
    scales = np.array([1.0, scale])
    plain = regress(gram(basis), basis @ vector)
    scaled = basis * scales[:, None]
    np.testing.assert_allclose(
        regress(gram(scaled), scaled @ vector), plain / scales, rtol=1e-9
    )


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_zero_vector_gets_coefficient_zero_and_leaves_other_coefficients(zero: int):
    rng = np.random.default_rng(4)
    basis, vector = rng.normal(size=(3, 20)), rng.normal(size=20)
    basis[zero] = 0
    others = np.delete(basis, zero, axis=0)
    result = regress(gram(basis), basis @ vector)
    assert result[zero] == 0
    np.testing.assert_allclose(
        np.delete(result, zero), regress(gram(others), others @ vector), rtol=1e-12
    )


def test_basis_of_zeros_gives_zeros():
    np.testing.assert_array_equal(regress(np.zeros((2, 3, 3)), np.zeros((2, 3))), 0)


def test_equal_vectors_share_the_coefficient():
    """Basis vectors are equal in the first windows, which have few earlier anchors."""
    vector = np.array([3.0, 4.0])
    basis = np.stack([vector, vector])
    # Equal coefficients are an eigenvector of the scaled Gram matrix, with 2 + RIDGE.
    expected = 1 / (2 + RIDGE)
    np.testing.assert_allclose(
        regress(gram(basis), basis @ vector), [expected, expected], rtol=1e-7
    )


def test_ridge_is_relative_to_the_squared_norm():
    result = regress(np.array([[4.0]]), np.array([4.0]))
    np.testing.assert_allclose(1 - result, [RIDGE], rtol=1e-6)
