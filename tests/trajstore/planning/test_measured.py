"""Test that the constants of plans are the measured ones."""

import json
from math import pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajstore.format.run_spec import BASIS
from trajstore.planning.errors import POWER
from trajstore.planning.estimate import COMPRESSION
from trajstore.planning.measured import (
    BASIS_RATIOS,
    DECAYED_END_RATIOS,
    END_ERROR_RATIOS,
    MEASURED_RUNS,
    RUN_SPREAD,
)
from trajstore.planning.parts import PARTS
from trajstore.sketch.fold import Fold
from trajstore.sketch.signs import Role

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def results(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return document


PACKED = {"heavy tails", "GRU", "label noise", "ratings", "weight decay"}
"""Networks with several bits per number, whose errors do not fall like those of signs, at least with
some sizes of the sketch."""


@pytest.mark.parametrize("name", MEASURED_RUNS)
def test_error_ratios_equal_the_measured_ratios(name: str):
    measured, errors = results("planning")[name], MEASURED_RUNS[name]
    size = measured["padded parameters"]
    fold = Fold(size=size, buckets=65536, seed=0, column_role=Role.FOLD)
    plain = sqrt((1 - 1 / fold.n_rows + pi / 2 - 1) / 65536)
    if name in PACKED:
        plain = measured["plain error"]
    by_length = measured["by epochs in a window"]
    shares = [float(length) / measured["epochs"] for length in by_length]
    assert errors.shares == pytest.approx(shares, abs=5e-4)
    by_basis = measured["by basis"] | {str(BASIS): by_length}
    assert sorted(by_basis) == [str(basis) for basis in sorted(errors.ratios)]
    for basis, ratios in errors.ratios.items():
        found = by_basis[str(basis)]
        expected = [at["from signs"] / plain for at in found.values()]
        assert ratios == pytest.approx(expected, abs=5e-4)
    whole = by_length["1.000"]
    # Standard errors agree with errors against exact values, which are random.
    if name in (workloads := results("accuracy")["workloads"]):
        exact = workloads[name]["middle"]["rms error of gamma"]
        assert whole["stderr of gamma"] == pytest.approx(exact, rel=0.15)


@pytest.mark.parametrize("name", sorted(set(MEASURED_RUNS) - PACKED))
@pytest.mark.parametrize("bits", [1 << 12, 1 << 18])
def test_errors_with_fewer_and_more_signs_are_as_predicted(name: str, bits: int):
    measured, errors = results("planning")[name], MEASURED_RUNS[name]
    size = measured["padded parameters"]
    fold = Fold(size=size, buckets=bits, seed=0, column_role=Role.FOLD)
    plain = sqrt((1 - 1 / fold.n_rows + pi / 2 - 1) / bits)
    ratio = errors.ratios[BASIS][list(measured["by epochs in a window"]).index("1.000")]
    found = measured["by signs"][str(bits)]
    assert ratio * plain == pytest.approx(found["from signs"], rel=0.1)


@pytest.mark.parametrize("name", PARTS)
def test_parts_equal_the_measured_ones(name: str):
    measured, parts = results("planning_parts")[name], PARTS[name]
    assert parts.optimizer == measured.pop("optimizer")
    found = {field: getattr(parts, field) for field in measured}
    assert found == pytest.approx(measured, rel=6e-3)


BITS = ("default", "2^17", "2^18", "2^19", "2^20")

COMPARED = [
    (name, result[option])
    for name, result in results("planning_like").items()
    for option in BITS
]
"""Errors of recordings of trainings that no constant was fitted to, with several numbers of signs."""


def test_nine_of_ten_errors_of_another_run_are_within_the_stated_factor():
    logs = [
        abs(np.log(errors["other"][part][1] / errors["same"][part][1]))
        for _, errors in COMPARED
        for part in ("step", "mean")
    ]
    assert np.exp(np.quantile(logs, 0.9)) == pytest.approx(RUN_SPREAD, rel=0.05)


def test_errors_planned_from_the_same_run_are_within_15_percent():
    """Steps of all trainings, and means of all but one in which epochs share windows."""
    ratios = {
        part: np.array(
            [errors["same"][part][1] / errors[part] for _, errors in COMPARED]
        )
        for part in ("step", "mean")
    }
    assert np.abs(np.log(ratios["step"])).max() < np.log(1.05)
    outside = np.abs(np.log(ratios["mean"])) > np.log(1.15)
    assert {
        name for (name, _), is_out in zip(COMPARED, outside, strict=True) if is_out
    } == {"autoencoder"}
    assert outside.sum() == 1


@pytest.mark.parametrize(("part", "share"), [("step", 0.8), ("mean", 0.7)])
def test_ranges_without_a_run_hold_most_errors(part: str, share: float):
    inside = [
        errors["none"][part][0] <= errors[part] <= errors["none"][part][2]
        for name, errors in COMPARED
        if name != "tiny perceptron"
    ]
    assert np.mean(inside) > share


@pytest.mark.parametrize("basis", [0, 1])
def test_ratios_of_a_basis_are_medians_of_the_measured_ones(basis: int):
    runs = [run for run in results("planning").values() if "by basis" in run]
    for part, ratio in zip(
        ("from signs", "from distance"), BASIS_RATIOS[basis], strict=True
    ):
        measured = [
            run["by basis"][str(basis)]["1.000"][part]
            / run["by epochs in a window"]["1.000"][part]
            for run in runs
            if str(basis) in run["by basis"]
        ]
        assert ratio == pytest.approx(np.median(measured), rel=0.05)


def test_the_power_of_the_remaining_rates_is_the_measured_mean():
    powers = [
        p for rates in results("planning")["power"].values() for p in rates.values()
    ]
    assert pytest.approx(np.mean(powers), abs=0.05) == POWER


def test_errors_at_both_ends_equal_the_measured_ones():
    ratios = [
        workload[part]["rms error of gamma"] / workload["middle"]["rms error of gamma"]
        for workload in results("accuracy")["workloads"].values()
        for part in ("first", "last")
    ]
    assert pytest.approx((min(ratios), max(ratios)), abs=0.05) == END_ERROR_RATIOS


def test_errors_at_the_end_of_schedules_that_decay_equal_the_measured_ones():
    measured = results("planning_ends").values()
    ratios = [ratio for row in measured for ratio in row["last fifth over mid-run"]]
    assert pytest.approx((min(ratios), max(ratios)), rel=0.05) == DECAYED_END_RATIOS


@pytest.mark.parametrize("name", COMPRESSION)
def test_compression_equals_the_measured_ratio(name: str):
    runs = [results("planning")[run] for run in MEASURED_RUNS]
    ratios = [r["bytes on disk over bytes in memory"][name] for r in runs]
    assert min(ratios) * 0.9 <= COMPRESSION[name] <= max(ratios) * 1.1
