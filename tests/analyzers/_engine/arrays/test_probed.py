"""Test ``analyzers._engine.arrays.probed`` against random draws of the probes."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from analyzers._engine.arrays.probed import adjacent_cosine, cosine, length, scaled

FloatArray = npt.NDArray[np.floating[Any]]
N, N_DRAWS = 256, 3000


def profile(kind: str) -> FloatArray:
    """Return sizes of elements: alike, one or some much larger, or rising."""
    sizes = np.full(4000, 0.01)
    if kind == "alike":
        return np.ones(4000)
    if kind == "one":
        sizes[7] = 1
    if kind == "some":
        sizes[::200] = 1
    return np.arange(1, 4001.0) ** 2 if kind == "rising" else sizes


def draws(vectors: FloatArray) -> FloatArray:
    """Probe vectors, with elements assigned to probes at random, (draw, vector, probe)."""
    rng = np.random.default_rng(0)
    probes = np.zeros((N_DRAWS, len(vectors), N))
    for draw in probes:
        place = rng.integers(0, N, vectors.shape[1])
        signed = vectors * rng.choice([-1.0, 1.0], vectors.shape[1])
        for probe, vector in zip(draw, signed, strict=True):
            probe[:] = np.bincount(place, vector, N)
    return probes


@pytest.mark.parametrize("kind", ["alike", "one", "some", "rising"])
def test_errors_agree_with_standard_errors(kind: str):
    rng = np.random.default_rng(1)
    a, b = profile(kind) * rng.normal(size=(2, 4000))
    b += 0.4 * a
    probes = draws(np.stack([a, b]))
    exact = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    for estimate, truth in [
        (cosine(probes[:, 0], probes[:, 1]), exact),
        (length(probes[:, 0]), np.linalg.norm(a)),
    ]:
        error = np.sqrt(((estimate.value - truth) ** 2).mean())
        stderr = np.sqrt((estimate.stderr**2).mean())
        assert stderr == pytest.approx(error, rel=0.15)


def test_zero_vectors_have_length_zero_and_no_cosine():
    nothing = np.zeros((2, N))
    assert np.isnan(cosine(nothing, nothing).value).all()
    assert length(nothing).value.tolist() == [0, 0]
    assert length(nothing).stderr.tolist() == [0, 0]


def test_scaling_changes_errors_only():
    plain = cosine(np.ones((1, 4)), np.arange(4.0)[None])
    twice = scaled(plain, np.array([2.0]))
    assert twice.value == plain.value
    assert twice.stderr == 2 * plain.stderr


def test_cosines_of_gradients_without_length_are_unknown():
    product = np.array([1.0, 0.0, 2.0, np.nan, 1.0])
    square = np.array([1.0, 0.0, 3.9999999, 1.0, np.inf])
    before = np.array([4.0, 1.0, 1.0, 1.0, 1.0])
    expected = [0.5, np.nan, 1.0, np.nan, np.nan]
    np.testing.assert_array_equal(adjacent_cosine(product, square, before), expected)
