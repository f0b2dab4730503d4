"""Test ``analyzers.no_wrong_turns.claims.verdict``."""

import math

import numpy as np
import pytest

from analyzers.no_wrong_turns.claims.verdict import (
    UNKNOWN,
    Measured,
    Verdict,
    all_of,
    difference,
    inside,
    listed,
    ratio,
)


@pytest.mark.parametrize(
    ("value", "stderr", "expected"),
    [
        (1.5, 0.1, "supported"),
        (1.5, 0.3, "inconclusive"),
        (1.1, 0.06, "inconclusive"),
        (0.9, 0.06, "inconclusive"),
        (0.9, 0.04, "contradicted"),
        (2.1, 0.04, "contradicted"),
        (2.1, 0.06, "inconclusive"),
        (math.nan, 0.1, "inconclusive"),
        (1.5, math.nan, "inconclusive"),
    ],
)
def test_number_lies_between_limits_at_two_standard_errors(
    value: float, stderr: float, expected: Verdict
):
    assert inside(Measured(value, stderr), low=1, high=2) == expected


def test_limits_may_be_missing():
    assert inside(Measured(1, 0.4), low=0) == "supported"
    assert inside(Measured(1, 0.4), high=0) == "contradicted"
    assert inside(UNKNOWN) == "inconclusive"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "inconclusive"], "inconclusive"),
        (["supported", "inconclusive", "contradicted"], "contradicted"),
        ([], "inconclusive"),
    ],
)
def test_verdicts_are_combined(verdicts: list[Verdict], expected: Verdict):
    assert all_of(verdicts) == expected


def test_errors_of_differences_and_ratios():
    a, b = Measured(6.0, 0.3), Measured(2.0, 0.4)
    assert difference(a, b) == pytest.approx((4.0, 0.5))
    assert ratio(a, b) == pytest.approx((3.0, 3 * math.hypot(0.05, 0.2)))
    assert ratio(Measured(-6.0, 0.3), b).stderr > 0
    assert math.isnan(ratio(a, Measured(0.0, 0.1)).value)


def test_numbers_are_written_with_their_errors():
    assert str(Measured(0.012345, 0.00031)) == "0.0123 ± 0.0003"
    assert str(Measured(0.1, float(np.std([0.1] * 3, ddof=1)))) == "0.1 ± 0"
    assert str(Measured(math.nan, math.nan)) == "nan ± nan"


def test_numbers_are_listed_by_label():
    numbers = {16: Measured(1.0, 0.1), "": Measured(2.0, 0.2)}
    assert listed(numbers) == "16: 1 ± 0.1, 2 ± 0.2"
