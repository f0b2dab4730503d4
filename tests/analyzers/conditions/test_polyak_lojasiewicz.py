"""Test ``analyzers.conditions.polyak_lojasiewicz`` with the constants it returns."""

import numpy as np
import pytest

import analyzers
from tests.analyzers.conditions.known_run import N_STEPS, KnownRun


def test_pl_constants_are_the_largest_that_hold(known: KnownRun):
    of_steps = known.run.steps["grad_norm"].values ** 2
    for measurement, grad_sq, loss in (
        ("full_batch", known.full["grad_sq"], known.full["loss"]),
        (None, of_steps, known.loss),
    ):
        least = known.full["at_end"]
        found = analyzers.polyak_lojasiewicz(
            known.run, reference_loss=least, measurement=measurement
        )
        assert found["delta"].values.tolist() == [1, 1.25, 1.5, 1.75, 2]
        above = loss > least
        assert int(found["n_missing"]) == (~above).sum()
        assert (~above).any() == (measurement is None)
        for delta in found["delta"].values:
            mu = found["mu"].sel(delta=delta).values
            assert np.isnan(mu[~above]).all()
            # |grad f|^delta = (2 mu)^(delta / 2) (f - f*).
            left = grad_sq[above] ** (delta / 2)
            right = (2 * mu[above]) ** (delta / 2) * (loss[above] - least)
            np.testing.assert_allclose(left, right, rtol=1e-5)
            smallest = float(found["smallest"].sel(delta=delta))
            assert smallest == np.nanmin(mu)
            row = int(np.nanargmin(mu))
            step = int(found["smallest_step"].sel(delta=delta))
            assert step == int(found["step"][row])


def test_steps_whose_loss_is_not_above_the_target_do_not_bound_mu(known: KnownRun):
    found = analyzers.polyak_lojasiewicz(known.run, reference_loss=1e6)
    assert np.isnan(found["smallest"]).all()
    assert (found["smallest_step"] == -1).all()
    assert int(found["n_missing"]) == N_STEPS


def test_a_missing_measurement_says_how_to_record_it(known: KnownRun):
    with pytest.raises(
        KeyError, match=r"by recorder.measure\('mine', loss=loss\) in a"
    ):
        analyzers.polyak_lojasiewicz(known.run, reference_loss=0, measurement="mine")


def test_orders_out_of_range_are_refused(known: KnownRun):
    with pytest.raises(
        ValueError, match=r"`delta` must be between 1 and 2, got \[0.5\]"
    ):
        analyzers.polyak_lojasiewicz(known.run, reference_loss=0, delta=[0.5])


def test_a_loss_of_the_run_is_no_infimum(known: KnownRun):
    """With f* = 0 of a quadratic mu is its curvature; with its last loss it is larger."""
    found = {
        least: analyzers.polyak_lojasiewicz(
            known.run, reference_loss=least, measurement="full_batch"
        )
        for least in (0.0, known.full["at_end"], 2 * known.full["at_end"])
    }
    of_infimum, of_last, above = found.values()
    assert (of_last["smallest"] > of_infimum["smallest"]).all()
    assert of_infimum.attrs["mu_is"].startswith("exact up to rounding if f* is")
    lowest = known.full["loss"].min()
    is_above = 2 * known.full["at_end"] > lowest
    assert above.attrs["mu_is"].startswith("too large: f* is above") == is_above
    far = analyzers.polyak_lojasiewicz(
        known.run, reference_loss=2 * lowest, measurement="full_batch"
    )
    assert far.attrs["mu_is"].startswith("too large: f* is above the infimum")
    batches = analyzers.polyak_lojasiewicz(known.run, reference_loss=2 * lowest)
    assert batches.attrs["mu_is"].startswith("exact up to rounding if")
