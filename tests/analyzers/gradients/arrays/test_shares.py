"""Test ``analyzers.gradients.arrays.shares`` against plain loops and known noise."""

from typing import Any

import numpy as np
import pytest

from analyzers.gradients.arrays.shares import (
    border_signs,
    displacement_share,
    loss_decrease,
    running_mean,
    sums_by_kind,
)
from analyzers.gradients.arrays.zigzag import find_segments

KINDS = np.repeat(np.array([1, -1, 0, -1, 1], np.int8), [40, 60, 20, 50, 30])
SEGMENTS = find_segments(KINDS)
STEP = np.arange(len(KINDS))
TREND = 3 * np.exp(-STEP / 60) + 0.1 * np.sin(STEP / 9)


@pytest.mark.parametrize("window", [1, 5, 11])
def test_running_means_are_means_of_what_is_around(window: int):
    values = np.random.default_rng(0).normal(size=30)
    values[[3, 4, 5, 6, 7, 8, 9, 29]] = np.nan
    half = window // 2
    for k, found in enumerate(running_mean(values, window)):
        around = values[max(0, k - half) : k + half + 1]
        known = around[~np.isnan(around)]
        expected = known.mean() if len(known) else np.nan
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_decreases_without_noise_are_differences_at_the_borders():
    signs = border_signs(SEGMENTS)
    decrease, share = loss_decrease(TREND, signs, 1)
    total = TREND[0] - TREND[-1]
    zigzag = TREND[40] - TREND[100] + TREND[120] - TREND[170]
    neither = TREND[100] - TREND[120]
    smooth = TREND[0] - TREND[40] + TREND[170] - TREND[199]
    np.testing.assert_allclose(decrease.value, [zigzag, neither, smooth])
    np.testing.assert_allclose(share.value, decrease.value / total)
    np.testing.assert_array_equal(decrease.stderr, 0)
    np.testing.assert_array_equal(share.stderr, 0)


def test_errors_of_decreases_are_as_large_as_they_are_said_to_be():
    rng = np.random.default_rng(1)
    signs = border_signs(SEGMENTS)
    sigma = 0.05 + 0.1 * np.exp(-STEP / 60)
    true = loss_decrease(TREND, signs, 11)
    scores = []
    for _ in range(400):
        losses = TREND + sigma * rng.normal(size=len(STEP))
        losses[::17] = np.nan
        expected = loss_decrease(np.where(np.isnan(losses), np.nan, TREND), signs, 11)
        found = loss_decrease(losses, signs, 11)
        scores.append(
            [
                (f.value - e.value) / f.stderr
                for f, e in zip(found, expected, strict=True)
            ]
        )
    z = np.array(scores)
    assert ((z.std(0) > 0.8) & (z.std(0) < 1.2)).all()
    assert (abs(z.mean(0)) < 4 / np.sqrt(400)).all()
    assert true[1].value.sum() == pytest.approx(1)


def test_sums_by_kind_leave_out_what_is_unknown():
    values = np.array([1.0, np.nan, 2.0, 4.0])
    kinds = np.array([-1, -1, 0, 1], np.int8)
    np.testing.assert_array_equal(sums_by_kind(values, kinds), [1, 2, 4])


def test_shares_of_displacement_from_probes_are_those_of_the_vectors():
    rng = np.random.default_rng(2)
    vectors: Any = rng.normal(size=(3, 400)) + 0.3 * rng.normal(size=400)
    whole = vectors.sum(0)
    exact = vectors @ whole / (whole @ whole)
    np.testing.assert_allclose(displacement_share(vectors).value, exact)
    assert displacement_share(vectors).value.sum() == pytest.approx(1)
    scores = []
    for _ in range(400):
        # Signs that are summed up in 64 buckets of random elements, as probes are.
        signed = vectors * rng.choice([-1.0, 1.0], 400)
        buckets = rng.permutation(400) % 64
        probes: Any = np.stack([np.bincount(buckets, v, 64) for v in signed])
        found = displacement_share(probes)
        scores.append((found.value - exact) / found.stderr)
    assert 0.8 < np.std(scores) < 1.2
