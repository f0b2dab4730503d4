"""Test that rounding errors of parameters have the stated size and repetition."""

import numpy as np
import pytest

from analyzers._engine.rounding import ROUNDING_SQ, Rounding, repetition

N_STEPS = 16


@pytest.mark.parametrize("change", [0.0, 0.03, 0.1, 0.3, 2.0])
def test_repetition_is_the_correlation_of_sawtooths(change: float):
    rng = np.random.default_rng(1)
    update = rng.uniform(0, 1000, 400_000)
    later = update + rng.normal(0, change, update.shape)
    errors = update - np.rint(update), later - np.rint(later)
    expected = 12 * (errors[0] * errors[1]).mean()
    found = repetition(np.array(change**2), np.array(1.0))
    # The series of 64 terms, scaled to 1 without a change, is 1 percent off at most.
    assert abs(found - expected) < 0.015


@pytest.mark.parametrize(
    ("change", "rounding"),
    [
        (1e-4, Rounding(np.array(1.0), np.array(0.0))),
        (0.0, Rounding(np.array(0.0), np.array(1.0))),
    ],
    ids=["random", "repeated"],
)
def test_sums_of_rounding_errors_have_the_stated_size(
    change: float, rounding: Rounding
):
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, 100_000).astype(np.float32)
    mean = rng.normal(0, 1e-5, x.shape)
    total, sums = np.zeros(x.shape), []
    for _ in range(N_STEPS):
        update = (mean + rng.normal(0, change, x.shape)).astype(np.float32)
        exact = x.astype(np.float64) + update
        x += update
        total += x - exact
        sums.append(total.copy())
    unit = ROUNDING_SQ * np.square(x, dtype=np.float64).mean()
    for k in (4, N_STEPS):
        found = np.square(sums[k - 1]).mean()
        assert found == pytest.approx(rounding.variance(k) * unit, rel=0.1)
    found = (sums[3] * sums[-1]).mean()
    expected = rounding.covariance(np.array(4.0), N_STEPS) * unit
    assert found == pytest.approx(expected, rel=0.1)
