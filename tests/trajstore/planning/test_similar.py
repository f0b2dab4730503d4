"""Test how errors of a recorded run are scaled to other windows and epochs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from trajstore.format.layout import Layout
from trajstore.format.run_spec import RunSpec
from trajstore.planning.errors import left_in_mean
from trajstore.planning.estimate import Plan, plan_recording
from trajstore.planning.measured import RUN_SPREAD, Optimizer
from trajstore.planning.similar import Recorded, RecordedErrors, times_of

LAYOUT = Layout(("weight",), ((300, 200),))


class Given:
    """Errors of a run whose sketch has one error, and whose probes have another."""

    doubled = 1.5

    def __init__(self, signs: float, distance: float, left: float = 1.0) -> None:
        self.signs, self.distance, self.left = signs, distance, left

    def of(self, spec: RunSpec) -> RecordedErrors:
        """Return errors that do not depend on the number of signs."""
        distance = self.distance * (1024 / spec.probes) ** 0.5
        step = np.hypot(self.signs, distance)
        mean = np.hypot(self.signs * np.sqrt(self.left / 20), distance)
        return RecordedErrors(float(step), float(mean))


def plan_like(
    errors: Given,
    every: int | None = None,
    optimizer: Optimizer = "sgd",
    n: int = 2000,
    own: int = 20,
) -> Plan:
    """Return a plan from a run of 100 epochs of 20 steps, with windows of one epoch."""
    options: dict[str, Any] = {"steps_per_epoch": 20, "optimizer": optimizer}
    spec = plan_recording(LAYOUT, n_steps=2000, reference_every=own, **options).spec
    like = Recorded(spec=spec, rate="constant", optimizer=optimizer, errors=errors)
    return plan_recording(
        LAYOUT, n_steps=n, reference_every=every or 20, like=like, **options
    )


def test_windows_of_the_run_have_its_errors():
    errors = Given(3e-3, 1e-3, 0.3)
    plan = plan_like(errors)
    step, mean = errors.of(plan.spec)
    low, typical, high = plan.stderr()
    assert typical == pytest.approx(step)
    assert (low, high) == pytest.approx((step / RUN_SPREAD, step * RUN_SPREAD))
    assert plan.stderr(mean_of=20).typical == pytest.approx(mean)
    # In a longer run the same share of it is a window.
    longer = plan_like(errors, 40, n=4000).stderr().typical
    assert longer == pytest.approx(step, rel=0.01)


@pytest.mark.parametrize(("every", "longer"), [(10, 0.5), (40, 2.0), (80, 4.0)])
def test_variances_grow_in_proportion_to_the_length_of_windows(
    every: int, longer: float
):
    def variance(errors: Given) -> float:
        ratio = plan_like(errors, every).stderr().typical
        return float(ratio / errors.of(plan_like(errors).spec).step) ** 2

    # The mean square of the residual is 1 in short windows, and 1.5 times as large in windows of
    # twice the length as in those of the run: 1 + x, with (1 + 2 x) / (1 + x) = 1.5.
    assert variance(Given(1e-3, 0)) == pytest.approx((1 + longer) / 2, rel=0.05)
    assert variance(Given(0, 1e-3)) == pytest.approx(longer, rel=0.05)


@pytest.mark.parametrize("every", [10, 20, 40, 100])
def test_an_exact_sum_of_a_window_leaves_what_it_does_not_know_of_an_epoch(every: int):
    """The covariance of independent errors whose sum is known, as a matrix."""
    steps = max(every, 20)
    covariance = np.eye(steps)
    for start in range(0, steps, every):
        of_window = np.zeros(steps)
        of_window[start : start + every] = 1
        spread = covariance @ of_window
        covariance -= np.outer(spread, spread) / (of_window @ spread)
    of_epoch = np.arange(steps) < 20
    left = of_epoch @ covariance @ of_epoch / 20
    assert left_in_mean(0.0, every / 20) == pytest.approx(left, abs=1e-12)


@pytest.mark.parametrize("every", [10, 40])
def test_means_are_scaled_by_what_sums_of_windows_leave(every: int):
    def left(plan: Plan) -> float:
        ratio = plan.stderr(mean_of=20).typical / plan.stderr().typical
        return float(ratio**2 * 20)

    expected = left_in_mean(0.2, every / 20)
    found = left(plan_like(Given(1e-3, 0, 0.2), every))
    assert found == pytest.approx(expected, rel=0.05)
    # Without known sums, errors of steps are independent whatever the windows.
    plan = plan_like(Given(1e-3, 0), every, optimizer="adaptive")
    plan = replace(plan, spec=replace(plan.spec, window_folds=0))
    assert left(plan) == pytest.approx(1)


@pytest.mark.parametrize("every", [10, 40, 80])
def test_an_epoch_has_its_share_of_the_rounding_of_the_ends_of_windows(every: int):
    """Errors of the ends of windows, interpolated within them, with a variance like their length."""
    starts = np.arange(0, 81, every)
    errors = np.sqrt(every) * np.eye(len(starts))
    path = np.array([np.interp([0, 20], starts, error) for error in errors])
    change = np.square(path[:, 1] - path[:, 0]).sum()
    found = plan_like(Given(0, 1e-3), every).stderr(mean_of=20).typical / 1e-3
    # Windows at both ends of the run are shorter.
    assert found**2 == pytest.approx(change / (2 * 20), rel=0.12)


def test_a_run_with_other_windows_tells_what_windows_of_an_epoch_leave():
    # Windows of ten steps, and of two epochs, of a run in which a window of one epoch leaves 0.2.
    for own in (10, 40):
        plan = plan_like(Given(1e-3, 0, left_in_mean(0.2, own / 20)), 20, own=own)
        ratio = plan.stderr(mean_of=20).typical / plan.stderr().typical
        assert ratio**2 * 20 == pytest.approx(0.2, rel=0.1)


def test_times_count_the_windows_of_the_middle():
    lengths = np.array([1, 1, 2, 4, *[8] * 10, 4, 2, 1, 1])
    times = times_of(lengths, n_steps=96, mean_of=8)
    assert times.window == pytest.approx(8 / 96)
    assert (times.slope, times.offset) == (1, 0)
    # Epochs of 16 steps have two windows each; those of 4 steps share one.
    assert times_of(lengths, n_steps=96, mean_of=16).slope == pytest.approx(0.5**0.5)
    shared = times_of(lengths[4:14], n_steps=80, mean_of=4)
    assert (shared.slope, shared.offset) == pytest.approx((0.5, 0.5))
