"""The variances that the benchmark of expected errors computes are those over all signs."""

import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

NAMES = (
    "expected_errors",
    "calibration",
    "calibration_trainings",
    "calibration_errors",
    "calibration_loops",
    "calibration_report",
    "saving",
)

SIZE, PLACES = 9, 3


@pytest.fixture
def expected_errors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import the benchmark, and remove its modules after the test."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("expected_errors")
    for name in NAMES:
        sys.modules.pop(name, None)


def test_covariances_of_folds_are_those_over_all_signs(expected_errors: Any):
    p, q, r, s = np.random.default_rng(0).standard_normal((4, SIZE))
    place = np.arange(SIZE) % PLACES
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=SIZE)))

    def folded(vector: Any) -> Any:
        return np.stack([(signs * vector)[:, place == j].sum(1) for j in range(PLACES)])

    first = (folded(p) * folded(q)).sum(0) - p @ q
    second = (folded(r) * folded(s)).sum(0) - r @ s
    one, two = expected_errors.Form(2.0, p, q), expected_errors.Form(3.0, r, s)
    found = expected_errors.fold_covariance(one, two, place)
    assert found == pytest.approx(6 * np.mean(first * second))
    assert expected_errors.fold_variance(p, q, place) == pytest.approx(
        np.mean(first**2)
    )


def test_stated_errors_of_a_small_network_are_those_over_all_signs(
    expected_errors: Any,
):
    trainings, loops = (
        sys.modules["calibration_trainings"],
        sys.modules["calibration_loops"],
    )
    training = trainings.Training(
        start=lambda seed: loops.perceptron(
            seed, widths=(20, 40, 40, 5), lr=2e-3, is_adam=True
        ),
        cases=trainings.DEFAULT,
        steps_per_epoch=30,
        epochs=3,
    )
    found = expected_errors.measure(training, trainings.Case())
    assert set(found) == {"products", "probes", "start", "displacements"}
    for term in ("products", "probes", "start"):
        assert found[term] == pytest.approx(1, abs=0.12), term


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_errors_of_sums_of_windows_are_those_over_all_signs(
    momentum: float, expected_errors: Any
):
    trainings, loops = (
        sys.modules["calibration_trainings"],
        sys.modules["calibration_loops"],
    )
    training = trainings.Training(
        start=lambda seed: loops.perceptron(
            seed, widths=(20, 40, 40, 5), lr=0.05, momentum=momentum
        ),
        cases=trainings.DEFAULT,
        steps_per_epoch=20,
        epochs=4,
    )
    case = trainings.Case(recorder={"sketch_bits": 4096})
    found = expected_errors.measure(training, case)
    for term in ("sums", "means"):
        assert found[term] == pytest.approx(1, abs=0.12), term
