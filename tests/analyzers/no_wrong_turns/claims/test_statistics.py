"""Test ``analyzers.no_wrong_turns.claims.statistics``."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analyzers import path_geometry
from analyzers.no_wrong_turns.claims.statistics import (
    Epochs,
    correlation_with_rate,
    errors_hide_sign,
    largest_over_smallest,
    late_distance,
    mean_over,
    middle,
    negative_share,
    rank_correlation,
    relative_variance,
    share_of_negative,
    steps_of,
    variance_within_epochs,
)

Make = Callable[..., xr.Dataset]
N_EPOCHS, N = 20, 60
RUN: Any = SimpleNamespace(n_epochs=N_EPOCHS)
MIDDLE = middle(N_EPOCHS)


@pytest.mark.parametrize(
    ("n_epochs", "first", "stop"),
    [(1, 0, 1), (2, 0, 1), (3, 1, 2), (4, 1, 3), (20, 5, 15), (190, 48, 142)],
)
def test_middle_is_the_middle_half(n_epochs: int, first: int, stop: int):
    assert middle(n_epochs) == (first, stop)


def test_steps_without_a_value_are_left_out(geometry_of: Make):
    geometry = geometry_of([[1, 2], [3, np.nan], [5, 6], [7, 8]])
    chosen = steps_of(geometry, Epochs(1, 3))
    assert chosen.gamma.values.tolist() == [3, 5, 6]


def test_error_of_the_mean_agrees_with_many_draws(geometry_of: Make):
    rng = np.random.default_rng(0)
    trend = np.linspace(0.5, 0.2, 48).reshape(8, 6)
    found = [
        mean_over(
            geometry_of(trend + 0.1 * rng.normal(size=(8, 6))), "gamma", Epochs(0, 8)
        )
        for _ in range(400)
    ]
    values, stderrs = np.array(found).T
    assert values.mean() == pytest.approx(0.35, abs=0.003)
    # The larger of two estimates is about ten percent too large.
    assert 1.0 < np.mean(stderrs) / values.std() < 1.3


def test_alike_neighbours_count_less(geometry_of: Make):
    rng = np.random.default_rng(0)
    epochs = 0.5 + 0.1 * rng.normal(size=(12, 1))
    steps = epochs + 0.01 * rng.normal(size=(12, 50))
    stderr = mean_over(geometry_of(steps), "gamma", Epochs(0, 12)).stderr
    assert stderr == pytest.approx(0.1 / np.sqrt(12), rel=0.4)


def test_errors_of_the_distance_do_not_average_out(geometry_of: Make):
    geometry = geometry_of(
        np.full((4, 5), 0.5),
        distance=2.0,
        distance_stderr=0.02,
        rsi=0.3,
        eb=0.6,
        lolr=0.1,
    )
    expected = {"gamma": 0.005, "rsi": 0.006, "eb": 0.006, "lolr": 0, "distance": 0.02}
    for name, stderr in expected.items():
        found = mean_over(geometry, name, Epochs(0, 4)).stderr
        assert found == pytest.approx(stderr, abs=1e-9)


def test_few_steps_have_no_error(geometry_of: Make):
    geometry = geometry_of([[0.5, 0.7]])
    value, stderr = mean_over(geometry, "gamma", Epochs(0, 1))
    assert value == pytest.approx(0.6)
    assert np.isnan(stderr)
    assert np.isnan(mean_over(geometry, "gamma", Epochs(5, 6))).all()


def test_variance_excludes_errors_of_estimates(geometry_of: Make):
    rng = np.random.default_rng(0)
    truth = 0.5 + 0.1 * rng.normal(size=(40, 100)) + np.arange(40)[:, None]
    estimates = truth + 0.2 * rng.normal(size=truth.shape)
    geometry = geometry_of(estimates, stderr=0.2)
    found = variance_within_epochs(geometry, None, Epochs(0, 40))
    assert found.value == pytest.approx(0.01, abs=4 * found.stderr)
    # For normal draws, the relative error is sqrt(2 / 99 / 40).
    assert found.stderr == pytest.approx(0.05 * np.sqrt(2 / 99 / 40), rel=0.3)


def test_relative_variance_is_relative_to_the_squared_mean(geometry_of: Make):
    rng = np.random.default_rng(0)
    draws = 1 + 0.1 * rng.normal(size=(30, 50))
    once = relative_variance(geometry_of(draws), None, Epochs(0, 30))
    scaled = relative_variance(geometry_of(draws * 7), None, Epochs(0, 30))
    assert once.value == pytest.approx(0.01, rel=0.1)
    assert scaled == pytest.approx(once)


def test_variance_of_one_epoch_has_no_error(geometry_of: Make):
    value, stderr = variance_within_epochs(geometry_of([[1, 2, 3]]), None, Epochs(0, 1))
    assert value == pytest.approx(1.0)
    assert np.isnan(stderr)


def test_share_counts_steps_that_are_surely_negative(geometry_of: Make):
    geometry = geometry_of([[-0.3, -0.1, 0.1, 0.3], [-0.3, 0.2, 0.2, 0.2]], stderr=0.1)
    assert share_of_negative(geometry, Epochs(0, 1)).value == 0.25
    assert share_of_negative(geometry, Epochs(0, 2)).value == 0.25
    none = share_of_negative(geometry_of(np.ones((10, 100))), Epochs(0, 10))
    assert none.value == 0
    assert 0 < none.stderr < 0.001
    assert np.isnan(share_of_negative(geometry, Epochs(7, 8)).value)


def test_the_excess_depends_on_the_distance_like_gamma(geometry_of: Any):
    """The error of the distance remains when gamma equals gamma of the walk."""
    gamma = 0.3 * np.ones((8, 5))
    geometry = geometry_of(gamma, excess=np.zeros_like(gamma))
    geometry["distance_stderr"] = 0.1 * geometry["distance"]
    found = mean_over(geometry, "excess", Epochs(2, 6))
    assert found.value == 0
    assert found.stderr == pytest.approx(0.03)


def test_the_final_epoch_does_not_count_as_negative(geometry_of: Make):
    gamma = np.full((N_EPOCHS, N), 0.5)
    gamma[-1] = -1
    assert negative_share(geometry_of(gamma, stderr=0.01), RUN, MIDDLE).value == 0
    gamma[3, :6] = -1
    found = negative_share(geometry_of(gamma, stderr=0.01), RUN, MIDDLE).value
    assert found == pytest.approx(6 / (19 * 60))


@pytest.mark.parametrize(("stderr", "expected"), [(0.2, False), (0.3, True)])
def test_errors_above_half_of_gamma_hide_its_sign(
    geometry_of: Make, stderr: float, expected: bool
):
    geometry = geometry_of(np.full((N_EPOCHS, N), 0.5), stderr=stderr)
    assert errors_hide_sign(geometry, RUN) == expected


@pytest.mark.parametrize("quantity", ["gamma", "lolr"])
def test_extremes_are_taken_over_the_middle_epochs(geometry_of: Make, quantity: str):
    level = np.full(N_EPOCHS, 0.1)
    level[10] *= 1.5
    # Epochs outside the middle half are ignored.
    level[:4], level[-4:] = 9, 9
    scatter = 0.02 * np.random.default_rng(0).normal(size=(N_EPOCHS, N))
    steps = level[:, None] * (1 + scatter - scatter.mean(1, keepdims=True))
    geometry = geometry_of(steps, lolr=steps)
    found = largest_over_smallest(quantity)(geometry, RUN, MIDDLE)
    assert found.value == pytest.approx(1.5, rel=1e-9)
    assert 0.001 < found.stderr < 0.02


def test_extremes_of_one_epoch_are_unknown_and_of_negative_means_infinite(
    geometry_of: Make,
):
    steady = largest_over_smallest("gamma")
    assert np.isnan(steady(geometry_of(np.ones((3, N))), RUN, middle(3)).value)
    negative = geometry_of(np.full((N_EPOCHS, N), -0.5))
    assert steady(negative, RUN, MIDDLE).value == np.inf


def test_late_distance_is_relative_to_the_start(geometry_of: Make):
    distance = np.repeat(np.linspace(10, 5, N_EPOCHS), N).reshape(N_EPOCHS, N)
    distance[17:] = 0.1
    geometry = geometry_of(np.ones((N_EPOCHS, N)), distance=distance)
    assert late_distance(geometry, RUN, MIDDLE).value == pytest.approx(0.01)


@pytest.mark.parametrize("sign", [1, -1])
def test_rank_correlation_of_monotone_series_is_one(sign: int):
    used = np.linspace(1, 0, 17)
    found = rank_correlation(np.exp(4 * sign * used), used)
    assert found == pytest.approx((sign, 0.25))
    mixed = np.random.default_rng(3).permutation(17).astype(float)
    assert abs(rank_correlation(mixed, used).value) < 0.5


def test_lolr_and_rate_are_compared_without_the_final_epoch(
    trained_runs: dict[str, Any],
):
    run = trained_runs["cosine"].run
    epoch = np.repeat(np.arange(8), 6)
    falling = np.where(epoch == 7, 99.0, 8.0 - epoch)
    geometry = path_geometry(run).compute()
    geometry["lolr"] = ("step", falling)
    found = correlation_with_rate(geometry, run, middle(8))
    assert found == pytest.approx((1, 1 / np.sqrt(6)))
