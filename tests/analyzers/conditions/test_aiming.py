"""Test ``analyzers.conditions.aiming`` against the true gradients of training."""

from pathlib import Path

import numpy as np
import pytest

import analyzers
from tests.analyzers.conditions.known_run import EPOCHS, KnownRun
from trajstore import open_run


def test_theta_and_cosine_agree_with_true_gradients(known: KnownRun):
    found = analyzers.aiming(known.run).compute()
    theta = known.product / known.loss
    np.testing.assert_allclose(found["theta"], theta, rtol=1e-4, atol=1e-6)
    geometry = analyzers.path_geometry(known.run).compute()
    np.testing.assert_array_equal(found["cosine"], geometry["gamma"])
    np.testing.assert_allclose(
        np.cos(np.deg2rad(found["angle"])), found["cosine"], atol=1e-12
    )
    assert found.attrs["gradient"] == "minibatch"
    full = analyzers.aiming(known.run, measurement="full_batch").compute()
    expected = known.full["product"] / known.full["loss"]
    np.testing.assert_allclose(full["theta"], expected, rtol=1e-4)
    np.testing.assert_allclose(full["cosine"], known.full["cosine"], rtol=1e-4)
    assert full.attrs["gradient"] == "measurement 'full_batch'"
    np.testing.assert_array_equal(full["epoch"], range(EPOCHS))


def test_errors_follow_from_the_errors_of_product_and_cosine(sketched: KnownRun):
    found = analyzers.aiming(sketched.run).compute()
    expected = sketched.compared()["product_stderr"] / sketched.loss
    np.testing.assert_allclose(found["theta_stderr"], expected, rtol=1e-5)
    h, few = 1e-6, found.isel(step=slice(0, 15))
    slope = (np.arccos(few["cosine"] + h) - np.arccos(few["cosine"])) / h
    expected = abs(np.rad2deg(slope)) * few["cosine_stderr"]
    np.testing.assert_allclose(few["angle_stderr"], expected, rtol=1e-4)


def test_a_missing_measurement_says_how_to_record_it(example_run: Path):
    run = open_run(example_run)
    with pytest.raises(
        KeyError, match=r"traj-train run NAME --full-gradients, or by rec"
    ):
        analyzers.aiming(run, measurement="full_batch")
