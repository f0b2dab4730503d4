"""Test ``analyzers.no_wrong_turns.claims.controls``: statements with a known answer."""

import pytest

from analyzers.no_wrong_turns.claims import controls
from analyzers.no_wrong_turns.claims.verdict import UNKNOWN, Measured, Seen


@pytest.mark.parametrize(
    ("excess", "expected"),
    [(0.1, "seen"), (-0.1, "not seen"), (0.01, "not decided")],
)
def test_sgd_decides_on_the_random_walk(excess: float, expected: Seen):
    excesses = {"sgd": Measured(excess, 0.01), "momentum": Measured(-1, 0.01)}
    found = controls.exceeds_random_walk(excesses)
    assert found.seen == expected
    assert "momentum: -1" in found.numbers


@pytest.mark.parametrize(
    ("noise", "expected"), [(0.1, "seen"), (0.9, "not seen"), (0.5, "not decided")]
)
def test_noise_is_compared_with_training(noise: float, expected: Seen):
    gammas = {"none": Measured(0.5, 0.01), "noise-gradients": Measured(noise, 0.01)}
    assert controls.noise_is_below_training(gammas).seen == expected


@pytest.mark.parametrize(("gamma", "expected"), [(0.1, "seen"), (-0.1, "not seen")])
def test_random_labels_have_a_sign(gamma: float, expected: Seen):
    assert controls.random_labels_are_positive(Measured(gamma, 0.01)).seen == expected


def test_controls_without_runs_are_not_decided():
    assert controls.exceeds_random_walk({}).seen == "not decided"
    assert controls.noise_is_below_training({}).seen == "not decided"
    assert controls.random_labels_are_positive(UNKNOWN).seen == "not decided"
