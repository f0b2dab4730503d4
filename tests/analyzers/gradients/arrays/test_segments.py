"""Test ``analyzers.gradients.arrays.segments`` against plain loops and known noise."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from analyzers.gradients.arrays import segments as module
from analyzers.gradients.arrays.segments import (
    border_signs,
    displacement_share,
    find_segments,
    loss_decrease,
    part_percentiles,
    running_mean,
    running_median,
    step_kinds,
    sums_by_kind,
)

VALUES = arrays(
    np.float64,
    st.integers(1, 30),
    elements=st.floats(-1, 1, width=16) | st.just(float("nan")),
)


KINDS = np.repeat(np.array([1, -1, 0, -1, 1], np.int8), [40, 60, 20, 50, 30])
SEGMENTS = find_segments(KINDS)
STEP = np.arange(len(KINDS))
TREND = 3 * np.exp(-STEP / 60) + 0.1 * np.sin(STEP / 9)


@given(VALUES, st.sampled_from([1, 3, 5, 11, 61]))
def test_running_medians_are_medians_of_the_values_around(values, window: int):
    half = window // 2
    for k, found in enumerate(running_median(values, window)):
        around = values[max(0, k - half) : k + half + 1]
        known = around[~np.isnan(around)]
        expected = np.median(known) if len(known) else np.nan
        np.testing.assert_allclose(found, expected, atol=1e-15)


def test_medians_do_not_depend_on_the_batch_size(
    monkeypatch: pytest.MonkeyPatch,
):
    values = np.random.default_rng(0).normal(size=100)
    whole = running_median(values, 7)
    monkeypatch.setattr(module, "ROWS", 9)
    np.testing.assert_array_equal(running_median(values, 7), whole)


def test_medians_equal_to_the_threshold_are_neither():
    running = np.array([-1, -0.5, -0.49, 0, np.nan, 0.5, 0.51])
    assert step_kinds(running, 0.5).tolist() == [-1, 0, 0, 0, 0, 0, 1]
    assert step_kinds(running, 0.0).tolist() == [-1, -1, -1, 0, 0, 1, 1]


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=40))
def test_segments_are_the_longest_runs_of_one_kind(kinds: list[int]):
    segments = find_segments(np.array(kinds, np.int8))
    joined = [
        int(kind)
        for start, stop, kind in zip(*segments, strict=True)
        for _ in range(start, stop)
    ]
    assert joined == kinds
    assert segments.start[0] == 0
    np.testing.assert_array_equal(segments.start[1:], segments.stop[:-1])
    assert (np.diff(segments.kind) != 0).all()


def test_parts_have_the_same_number_of_steps():
    values = np.array([0.0, 1, 2, 3, np.nan, 5, 6])
    np.testing.assert_array_equal(part_percentiles(values, 50, n_parts=3), [1, 3, 5.5])
    assert np.isnan(part_percentiles(values[:2], 50, n_parts=3)[2])


@pytest.mark.parametrize("window", [1, 5, 11])
def test_running_means_are_means_of_the_values_around(window: int):
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


def test_errors_of_decreases_agree_with_standard_errors():
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


def test_sums_by_kind_leave_out_unknown_values():
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
        # As in probes, elements with random signs are summed in 64 random buckets.
        signed = vectors * rng.choice([-1.0, 1.0], 400)
        buckets = rng.permutation(400) % 64
        probes: Any = np.stack([np.bincount(buckets, v, 64) for v in signed])
        found = displacement_share(probes)
        scores.append((found.value - exact) / found.stderr)
    assert 0.8 < np.std(scores) < 1.2
