"""Test the errors of probes that few elements share, by all or by many draws of signs."""

from itertools import product

import numpy as np
import pytest

from analyzers._engine.arrays.collisions import (
    find_collisions,
    inverse_counts,
    no_collisions,
)

SIZE, N_PROBES = 60, 16
LAYER = np.repeat([0, 1], [40, 20])


def test_the_variance_of_a_product_is_the_sum_over_pairs_in_a_probe():
    """Enumerate all signs of ten elements in three probes."""
    rng = np.random.default_rng(0)
    a, v = rng.standard_normal((2, 10))
    probe = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 1])
    signs = np.array(list(product([-1.0, 1.0], repeat=10)))
    onto = np.eye(3)[probe]
    errors = ((signs * a) @ onto * ((signs * v) @ onto)).sum(1) - a @ v
    same = probe[:, None] == probe
    pairs = np.where(same & ~np.eye(10, dtype=bool), np.outer(a**2, v**2), 0).sum()
    crossed = np.where(same & ~np.eye(10, dtype=bool), np.outer(a * v, a * v), 0).sum()
    assert np.mean(errors**2) == pytest.approx(pairs + crossed)

    # The energies of an unknown vector are known here: the profile is made to equal them.
    collisions = find_collisions(
        a, v, probe, np.arange(10), block=np.arange(10), n_probes=3, n_layers=0
    )
    energies = collisions.energies[0]
    counts = inverse_counts(np.sqrt(energies)[None], collisions, np.zeros(1))[0, 1]
    v_aside = v - a * (a @ v) / (a @ a)
    outer = np.where(same & ~np.eye(10, dtype=bool), np.outer(a**2, v_aside**2), 0)
    assert counts * (a @ a) * (v_aside @ v_aside) == pytest.approx(outer.sum())


@pytest.mark.parametrize("n_layers", [0, 2])
def test_elements_with_probes_of_their_own_have_no_error(n_layers: int):
    rng = np.random.default_rng(1)
    f, v, a = rng.standard_normal((3, SIZE))
    collisions = find_collisions(
        f, v, np.arange(SIZE), LAYER, block=LAYER, n_probes=64, n_layers=n_layers
    )
    counts = inverse_counts(np.pad(a, (0, 4))[None], collisions, np.full(1, 0.5))
    assert counts.shape == (1, 2 + n_layers)
    np.testing.assert_array_equal(counts, 0)


def test_many_even_elements_in_every_probe_err_like_all_probes():
    rng = np.random.default_rng(2)
    f, v, a = rng.choice([-1.0, 1.0], (3, 100 * SIZE))
    probe = np.arange(len(f)) % N_PROBES
    layer = np.arange(len(f)) // (50 * SIZE)
    collisions = find_collisions(
        f, v, probe, layer, block=layer, n_probes=N_PROBES, n_layers=2
    )
    probes = np.bincount(probe, a, N_PROBES)[None].astype(float)
    counts = inverse_counts(probes, collisions, np.zeros(1))
    np.testing.assert_allclose(counts, 1 / N_PROBES, rtol=0.05)


@pytest.mark.parametrize("rounded", [0.0, 1.0], ids=["displacement", "rounding"])
def test_errors_of_few_elements_are_as_large_as_stated(rounded: float):
    """Elements differ in size, but rounding errors of anchors do not."""
    rng = np.random.default_rng(3)
    scale = np.exp((1 + rounded) * rng.standard_normal(SIZE))
    probe = rng.permutation(SIZE) % N_PROBES
    onto = np.eye(N_PROBES)[probe]
    ratios = []
    for _ in range(300):
        f, v, a = scale * rng.standard_normal((3, SIZE))
        if rounded:
            a = rng.uniform(-0.5, 0.5, SIZE)
        v -= f * (f @ v) / (f @ f)
        signs = rng.choice([-1.0, 1.0], (20, SIZE))
        one = np.zeros(SIZE, int)
        collisions = find_collisions(
            f, v, probe, one, block=one, n_probes=N_PROBES, n_layers=0
        )
        shares = np.full(len(signs), rounded)
        counts = inverse_counts((signs * a) @ onto, collisions, shares)[:, 1]
        error = (((signs * a) @ onto) * ((signs * v) @ onto)).sum(1) - a @ v
        ratios.append(error**2 / (counts * (a @ a) * (v @ v)))
    assert 0.8 < np.sqrt(np.mean(ratios)) < 1.25


def test_zero_vectors_have_no_errors():
    zeros = np.zeros(SIZE)
    collisions = find_collisions(
        *(zeros, zeros, np.arange(SIZE) % N_PROBES, LAYER),
        block=LAYER,
        n_probes=N_PROBES,
        n_layers=2,
    )
    counts = inverse_counts(np.zeros((3, N_PROBES)), collisions, np.zeros(3))
    np.testing.assert_array_equal(counts, 0)
    assert no_collisions(N_PROBES).energies.shape == (0, N_PROBES)


def test_energy_of_elements_that_share_no_probe_causes_no_errors():
    """Layer 0 moves; only elements of layer 1, which rests but for a little, share probes."""
    probe = np.r_[np.arange(12), 12, 12, 13, 13]
    layer = np.repeat([0, 1], [12, 4])
    rng = np.random.default_rng(6)
    f, v, a = rng.standard_normal((3, 16))
    f[12:], a[12:] = 1e-3, [0.5, -0.4, 0.3, 0.6]
    v -= f * (f @ v) / (f @ f)
    collisions = find_collisions(
        f, v, probe, layer, block=layer, n_probes=16, n_layers=0
    )
    signs = np.array(list(product([-1.0, 1.0], repeat=4)))
    signs = np.hstack([np.ones((16, 12)), signs])
    onto = np.eye(16)[probe]
    probes = (signs * a) @ onto
    counts = inverse_counts(probes, collisions, np.zeros(16))[:, 1]
    stated = counts * (probes**2).sum(1) * (v @ v)
    # The two elements of a probe have equal shares of its energy by their profile.
    pairs = [(12, 13), (14, 15)]
    expected = sum((a[i] ** 2 + a[j] ** 2) * (v[i] ** 2 + v[j] ** 2) for i, j in pairs)
    assert np.mean(stated) == pytest.approx(expected / 2)
