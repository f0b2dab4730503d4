"""Test ``analyzers.explorer.contents.decimation``."""

import numpy as np
import pytest

from analyzers.explorer.contents.decimation import (
    buckets,
    extremes,
    means_of_groups,
    root_mean_squares,
)


@pytest.mark.parametrize(("n_steps", "most"), [(1, 5), (10, 5), (11, 5), (999, 100)])
def test_buckets_cover_every_step_once(n_steps: int, most: int):
    groups = buckets(n_steps, most)
    assert len(groups.starts) <= most
    covered = [
        k for i in groups.starts for k in range(i, min(i + groups.size, n_steps))
    ]
    assert covered == [*range(n_steps)]


def test_extremes_are_those_of_the_steps_and_ignore_nan():
    values = np.random.default_rng(0).standard_normal(1003)
    values[[3, 4, 5, 700]] = np.nan
    values[100:107] = np.nan
    groups = buckets(1003, 150)
    low, high = extremes(values, groups)
    for i, start in enumerate(groups.starts):
        part = values[start : start + groups.size]
        known = part[np.isfinite(part)]
        if len(known):
            assert (low[i], high[i]) == (known.min(), known.max())
        else:
            assert np.isnan([low[i], high[i]]).all()


def test_errors_of_buckets_are_root_mean_squares():
    values = np.array([3.0, 4.0, np.nan, 1.0, np.nan, np.nan, 2.0])
    found = root_mean_squares(values, buckets(7, 4))
    np.testing.assert_allclose(found, [np.sqrt(12.5), 1.0, np.nan, 2.0], rtol=1e-6)
    single = root_mean_squares(values, buckets(7, 7))
    np.testing.assert_array_equal(single, values.astype(np.float32))


def test_means_of_groups_ignore_nan():
    labels = np.array([0, 0, 0, 2, 2, 5])
    values = np.array([1.0, np.nan, 3.0, np.nan, np.nan, 7.0])
    np.testing.assert_array_equal(means_of_groups(values, labels), [2.0, np.nan, 7.0])
    table = np.stack([values, 2 * values], axis=1)
    expected = [[2.0, 4.0], [np.nan, np.nan], [7.0, 14.0]]
    np.testing.assert_array_equal(means_of_groups(table, labels), expected)
