"""Test ``analyzers.gradients.arrays.zigzag`` against plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from analyzers._engine.arrays.probed import adjacent_cosine
from analyzers.gradients.arrays import zigzag
from analyzers.gradients.arrays.zigzag import (
    find_segments,
    part_percentiles,
    running_median,
    step_kinds,
)

VALUES = arrays(
    np.float64,
    st.integers(1, 30),
    elements=st.floats(-1, 1, width=16) | st.just(float("nan")),
)


@given(VALUES, st.sampled_from([1, 3, 5, 11, 61]))
def test_running_medians_are_medians_of_what_is_around(values, window: int):
    half = window // 2
    for k, found in enumerate(running_median(values, window)):
        around = values[max(0, k - half) : k + half + 1]
        known = around[~np.isnan(around)]
        expected = np.median(known) if len(known) else np.nan
        np.testing.assert_allclose(found, expected, atol=1e-15)


def test_medians_do_not_depend_on_how_many_are_taken_at_once(
    monkeypatch: pytest.MonkeyPatch,
):
    values = np.random.default_rng(0).normal(size=100)
    whole = running_median(values, 7)
    monkeypatch.setattr(zigzag, "ROWS", 9)
    np.testing.assert_array_equal(running_median(values, 7), whole)


def test_thresholds_are_not_reached_by_what_equals_them():
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


def test_cosines_of_gradients_without_length_are_unknown():
    product = np.array([1.0, 0.0, 2.0, np.nan, 1.0])
    square = np.array([1.0, 0.0, 3.9999999, 1.0, np.inf])
    before = np.array([4.0, 1.0, 1.0, 1.0, 1.0])
    expected = [0.5, np.nan, 1.0, np.nan, np.nan]
    np.testing.assert_array_equal(adjacent_cosine(product, square, before), expected)


def test_parts_have_equally_many_steps():
    values = np.array([0.0, 1, 2, 3, np.nan, 5, 6])
    np.testing.assert_array_equal(part_percentiles(values, 50, n_parts=3), [1, 3, 5.5])
    assert np.isnan(part_percentiles(values[:2], 50, n_parts=3)[2])
