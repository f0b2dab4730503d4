"""Test that more disk space never increases the error, and that bounds are enforced."""

from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trajstore.format.layout import Layout
from trajstore.format.run_spec import SchemaError
from trajstore.planning.estimate import guess_layout, plan_recording
from trajstore.planning.search import SIGNS, best_plan

LAYOUT = Layout(("weight", "bias"), ((2000, 500), (500,)))

runs = st.fixed_dictionaries(
    {
        "n_steps": st.integers(1, 20_000),
        "steps_per_epoch": st.none() | st.integers(1, 3000),
    }
)
layouts = st.builds(guess_layout, st.integers(100, 200_000_000))
few = settings(max_examples=10)


@few
@given(
    layout=layouts,
    run=runs,
    ratios=st.lists(st.floats(1, 1000), min_size=2, max_size=5),
)
def test_more_disk_space_never_gives_a_larger_error(layout, run, ratios):
    least = min_disk(layout, run)
    plans = [best_plan(layout, **run, disk=least * ratio) for ratio in sorted(ratios)]
    errors = [plan.stderr().typical for plan in plans]
    assert errors == sorted(errors, reverse=True)
    for plan, ratio in zip(plans, sorted(ratios), strict=True):
        assert plan.disk <= least * ratio


@few
@given(
    layout=layouts,
    run=runs,
    errors=st.lists(st.floats(1e-3, 1), min_size=2, max_size=5),
)
def test_smaller_errors_never_need_less_disk_space(layout, run, errors):
    plans = [
        best_plan(layout, **run, stderr=error) for error in sorted(errors, reverse=True)
    ]
    sizes = [plan.disk for plan in plans]
    assert sizes == sorted(sizes)
    for plan, error in zip(plans, sorted(errors, reverse=True), strict=True):
        assert plan.stderr().typical <= error


def min_disk(layout: Layout, run: dict[str, Any]) -> float:
    return best_plan(layout, **run, stderr=1e9).disk


@few
@given(n_steps=st.integers(1, 30_000), steps_per_epoch=st.integers(1, 3000))
def test_windows_divide_epochs_or_consist_of_whole_epochs(n_steps, steps_per_epoch):
    plan = best_plan(
        LAYOUT, n_steps=n_steps, steps_per_epoch=steps_per_epoch, stderr=1.0
    )
    length = plan.windows.length
    assert length % steps_per_epoch == 0 or length < steps_per_epoch


def test_bounds_out_of_reach_are_refused():
    with pytest.raises(
        ValueError, match=rf"out of reach: even {SIGNS[-1]} .* exact=True"
    ):
        best_plan(LAYOUT, n_steps=1000, stderr=1e-9)
    with pytest.raises(ValueError, match=r"10 bytes is too small: .* 4096 signs"):
        best_plan(LAYOUT, n_steps=1000, disk=10)


@pytest.mark.parametrize("make", [plan_recording, partial(best_plan, stderr=1)])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_steps": 0}, r"total_steps: expected an integer of at least 1, .* got 0"),
        ({"steps_per_epoch": 0}, r"steps_per_epoch: expected an integer .* got 0"),
    ],
)
def test_impossible_runs_are_refused(make, wrong, message):
    with pytest.raises(SchemaError, match=message):
        make(LAYOUT, **({"n_steps": 10} | wrong))
