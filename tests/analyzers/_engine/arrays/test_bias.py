"""The biases of estimated quantities are those of the table in docs/estimator.md."""

import numpy as np
import pytest

from analyzers._engine.arrays.geometry import Estimate, Sampled, distance, quantities

BIASES = {"gamma": 1.5, "eb": 1.5, "rsi": 4.0, "lolr": 0.0, "distance": -0.5}
"""Relative bias over the squared relative error of the distance."""


@pytest.mark.parametrize("relative", [0.03, 0.06])
def test_the_bias_is_of_second_order_in_the_error_of_the_distance(relative: float):
    """a = x - r and v = x* - r are known but for <a, v>, and <g, x - x*> is estimated, too."""
    rng = np.random.default_rng(0)
    n, length, product = 1_000_000, 2.0, 0.7
    a_sq, v_sq = np.array(1.3), np.array(3.9)
    inner = (a_sq + v_sq - length**2) / 2
    # Pairs of opposite errors remove what is odd in them.
    noise = rng.normal(size=n // 2)
    noise = relative * length**2 * np.concatenate([noise, -noise])
    found = distance(a_sq, Estimate(inner + noise, np.zeros(n)), v_sq)
    other = rng.normal(size=n // 2)
    numerator = product + 0.1 * np.concatenate([other, other])
    numerator[n // 2 :] -= 0.2 * other
    numerator = rng.permutation(numerator)
    sampled = Sampled(Estimate(numerator, np.zeros(n)), np.full(n, 0.25), np.zeros(n))
    true = {
        "gamma": product / (0.5 * length),
        "eb": 0.5 / length,
        "rsi": product / length**2,
        "lolr": product / 0.25,
        "distance": length,
    }
    for name, value in quantities(sampled, found).items():
        bias = value.value.mean() / true[name] - 1
        # Fourth order is left: 48 relative**4 of RSI. The rest is the scatter of the mean.
        allowed = 60 * relative**4 + 4 * value.value.std() / true[name] / np.sqrt(n)
        assert bias == pytest.approx(BIASES[name] * relative**2, abs=allowed), name
