"""Test ``analyzers.no_wrong_turns.claims.verdict``."""

import math

import pytest

from analyzers.no_wrong_turns.claims.verdict import (
    UNKNOWN,
    Measured,
    Seen,
    all_of,
    difference,
    inside,
    ratio,
)


@pytest.mark.parametrize(
    ("value", "stderr", "expected"),
    [
        (1.5, 0.1, "seen"),
        (1.5, 0.3, "not decided"),
        (1.1, 0.06, "not decided"),
        (0.9, 0.06, "not decided"),
        (0.9, 0.04, "not seen"),
        (2.1, 0.04, "not seen"),
        (2.1, 0.06, "not decided"),
        (math.nan, 0.1, "not decided"),
        (1.5, math.nan, "not decided"),
    ],
)
def test_number_lies_between_limits_at_two_standard_errors(
    value: float, stderr: float, expected: Seen
):
    assert inside(Measured(value, stderr), low=1, high=2) == expected


def test_limits_may_be_missing():
    assert inside(Measured(1, 0.4), low=0) == "seen"
    assert inside(Measured(1, 0.4), high=0) == "not seen"
    assert inside(UNKNOWN) == "not decided"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["seen", "seen"], "seen"),
        (["seen", "not decided"], "not decided"),
        (["seen", "not decided", "not seen"], "not seen"),
        ([], "not decided"),
    ],
)
def test_verdicts_are_put_together(verdicts: list[Seen], expected: Seen):
    assert all_of(verdicts) == expected


def test_errors_of_differences_and_ratios():
    a, b = Measured(6.0, 0.3), Measured(2.0, 0.4)
    assert difference(a, b) == pytest.approx((4.0, 0.5))
    assert ratio(a, b) == pytest.approx((3.0, 3 * math.hypot(0.05, 0.2)))
    assert ratio(Measured(-6.0, 0.3), b).stderr > 0
    assert math.isnan(ratio(a, Measured(0.0, 0.1)).value)


def test_numbers_are_written_with_their_errors():
    assert str(Measured(0.012345, 0.00031)) == "0.0123 ± 0.0003"
