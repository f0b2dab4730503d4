"""Test ``analyzers.no_wrong_turns.claims.single_runs``: statements with a known answer."""

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr

from analyzers.no_wrong_turns.claims import single_runs as claims
from analyzers.no_wrong_turns.claims.verdict import Seen

Make = Callable[..., xr.Dataset]
N_EPOCHS, N = 20, 60


def levels(
    values: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Steps that scatter a little around a level for each epoch."""
    rng = np.random.default_rng(0)
    scatter = 1 + 0.02 * rng.normal(size=(len(values), N))
    return np.asarray(values[:, None] * scatter)


@pytest.mark.parametrize(
    ("n_negative", "expected"), [(0, "seen"), (60, "not seen"), (11, "not decided")]
)
def test_negative_steps_are_counted(geometry_of: Make, n_negative: int, expected: Seen):
    gamma = np.full((N_EPOCHS, N), 0.5)
    gamma.ravel()[:n_negative] = -0.5
    # The final epoch does not count.
    gamma[-1] = -1
    run = geometry_of(gamma, stderr=0.01)
    found = claims.almost_none_negative({"net": (run, N_EPOCHS)})
    assert found.seen == expected
    assert "net: " in found.numbers


def test_what_errors_hide_is_not_decided(geometry_of: Make):
    run = geometry_of(np.full((N_EPOCHS, N), 0.5), stderr=0.3)
    found = claims.almost_none_negative({"net": (run, N_EPOCHS)})
    assert found.seen == "not decided"


def test_one_run_of_several_decides(geometry_of: Make):
    good, bad = (geometry_of(np.full((N_EPOCHS, N), g)) for g in (0.5, -0.5))
    runs = {"good": (good, N_EPOCHS), "bad": (bad, N_EPOCHS)}
    assert claims.almost_none_negative(runs).seen == "not seen"
    assert claims.is_steady(runs, quantity="gamma", figure="2").seen == "not seen"


@pytest.mark.parametrize(
    ("ratio", "expected"), [(1.5, "seen"), (3.0, "not seen"), (2.0, "not decided")]
)
def test_steady_is_within_a_factor_of_two(
    geometry_of: Make, ratio: float, expected: Seen
):
    level = np.full(N_EPOCHS, 0.1)
    level[10] *= ratio
    # What is outside of the middle half does not count.
    level[:4], level[-4:] = 9, 9
    run = geometry_of(levels(level), lolr=levels(level))
    for quantity in ("gamma", "lolr"):
        found = claims.is_steady(
            {"net": (run, N_EPOCHS)}, quantity=quantity, figure="2"
        )
        assert found.seen == expected


def test_one_epoch_in_the_middle_tells_nothing(geometry_of: Make):
    run = geometry_of(levels(np.full(3, 0.1)))
    found = claims.is_steady({"net": (run, 3)}, quantity="gamma", figure="2")
    assert found.seen == "not decided"


@pytest.mark.parametrize(("sign", "expected"), [(1, "seen"), (-1, "not seen")])
def test_schedule_is_followed_where_ranks_agree(sign: int, expected: Seen):
    used = xr.DataArray(np.linspace(1, 0, 19), dims="epoch")
    means = xr.Dataset({"lolr": ("epoch", np.exp(4 * sign * used.values))})
    found = claims.lolr_follows_schedule({"net": (means, used)})
    assert found.seen == expected
    assert f"{sign} ± 0.2" in found.numbers


def test_schedule_is_not_decided_where_ranks_are_mixed():
    used = xr.DataArray(np.linspace(1, 0, 19), dims="epoch")
    mixed = np.random.default_rng(3).permutation(19)
    means = xr.Dataset({"lolr": ("epoch", mixed)})
    found = claims.lolr_follows_schedule({"net": (means, used)})
    assert found.seen == "not decided"


@pytest.mark.parametrize(("late", "expected"), [(0.01, "seen"), (0.2, "not seen")])
def test_distance_is_compared_with_that_at_the_start(
    geometry_of: Make, late: float, expected: Seen
):
    distance = np.linspace(10, 5, N_EPOCHS)
    distance[-3:] = 10 * late
    run = geometry_of(
        np.ones((N_EPOCHS, N)), distance=np.repeat(distance, N).reshape(N_EPOCHS, N)
    )
    found = claims.distance_is_negligible_late({"net": (run, N_EPOCHS)})
    assert found.seen == expected


@pytest.mark.parametrize(("share", "expected"), [(0.2, "seen"), (0.0, "not seen")])
def test_counter_examples_are_negative_at_times(
    geometry_of: Make, share: float, expected: Seen
):
    gamma = np.full((N_EPOCHS, N), 0.3)
    gamma[:, : int(share * N)] = -0.3
    one, other = geometry_of(gamma), geometry_of(-abs(gamma))
    runs = {"alm": (one, N_EPOCHS), "sm": (other, N_EPOCHS)}
    assert claims.is_negative_at_times(runs).seen == expected


def test_statements_without_runs_are_not_decided():
    for found in (
        claims.almost_none_negative({}),
        claims.is_steady({}, quantity="gamma", figure="2"),
        claims.lolr_follows_schedule({}),
        claims.distance_is_negligible_late({}),
        claims.is_negative_at_times({}),
    ):
        assert found.seen == "not decided"
