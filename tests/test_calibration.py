"""The exact side of the calibration agrees with closed forms, and its scores with their meaning."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

LR, STEPS = 0.25, 12


@pytest.fixture
def calibration(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import the modules of the benchmark, and remove them after the test."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = ("calibration_trainings", "calibration_errors", "calibration")
    found: dict[str, Any] = {}
    for name in names:
        found |= vars(importlib.import_module(name))
    yield SimpleNamespace(**found)
    for name in (*names, "calibration_loops", "calibration_report", "saving"):
        sys.modules.pop(name, None)


def descent(calibration: Any, weight_decay: float = 0.0) -> Callable[[int], Any]:
    """Return gradient descent on |x|^2 / 2, of two tensors of four and one elements."""

    def start(_seed: int) -> Any:
        model = torch.nn.Linear(4, 1)
        model.weight.data[:] = torch.tensor([[1.0, -2.0, 2.0, 0.0]])
        model.bias.data[:] = 4.0
        return calibration.Loop(
            model,
            torch.optim.SGD(model.parameters(), lr=LR, weight_decay=weight_decay),
            lambda: sum(p.square().sum() / 2 for p in model.parameters()),
        )

    return start


def test_the_exact_geometry_of_a_quadratic_function_is_known(calibration: Any):
    kept = calibration.train(descent(calibration)(0), STEPS)
    # x_k = (1 - lr)^k x_0 and g_k = x_k, both without rounding.
    shrunk = (1 - LR) ** np.arange(STEPS)
    remaining = shrunk - (1 - LR) ** STEPS
    exact = calibration.exact_geometry(kept, kept.iterates[-1], 0.0)
    for column, norm in enumerate((5.0, 3.0, 4.0)):
        expected = {
            "gamma": np.ones(STEPS),
            "rsi": shrunk / remaining,
            "eb": shrunk / remaining,
            "lolr": remaining / shrunk,
            "distance": remaining * norm,
        }
        for name, values in expected.items():
            np.testing.assert_allclose(exact[name][:, column], values, 1e-6)


def test_weight_decay_is_added_to_the_exact_gradient(calibration: Any):
    kept = calibration.train(descent(calibration)(0), STEPS)
    exact = calibration.exact_geometry(kept, np.zeros(5), 3.0)
    np.testing.assert_allclose(exact["eb"][:, 0], 4.0, 1e-12)
    np.testing.assert_allclose(exact["lolr"][:, 0], 0.25, 1e-12)


def test_scores_tell_bias_from_spread(calibration: Any):
    # Two of three seeds err by one standard error, the third by four.
    errors = np.array([[0.1, -0.1], [0.1, -0.1], [0.4, 0.4]])
    scored = calibration.scores(calibration.Compared(errors, np.full_like(errors, 0.1)))
    assert scored["z"] == pytest.approx(np.sqrt((1 + 1 + 16) / 3))
    assert scored["largest z"] == pytest.approx(4)
    assert scored["error"] == pytest.approx(0.1 * scored["z"])
    # The means over rows are 0, 0 and 4 standard errors.
    assert scored["t"] == pytest.approx(1)
    assert scored["missing"] == 0


def test_values_that_are_exact_up_to_rounding_have_no_score(calibration: Any):
    errors = np.array([[1e-7, 0.2], [1e-7, -0.2]])
    stderrs = np.array([[0.0, 0.1], [0.0, 0.1]])
    scored = calibration.scores(calibration.Compared(errors, stderrs))
    assert scored["z"] == pytest.approx(2)
    errors[0, 0] = 1e-3
    wrong = calibration.scores(calibration.Compared(errors, stderrs))
    assert wrong["largest z"] > 1000


def test_a_resumed_training_is_calibrated(calibration: Any, tmp_path: Path):
    def start(seed: int) -> Any:
        return calibration.TRAININGS["mlp579"].start(seed)

    training = calibration.Training(
        start=start,
        cases={"": calibration.Case(layers=True)},
        steps_per_epoch=8,
        epochs=4,
        resume_at=13,
    )
    results = calibration.measure(
        training, 3, tmp_path, lambda _title, _total: lambda: None
    )
    result = results[""]
    assert (result["parameters"], result["steps"], result["seeds"]) == (579, 32, 3)
    step = result["quantities"]["lolr"]["middle"]["step"]
    # 48 errors of one training: their rms is uncertain by 10 %.
    assert 0.6 < step["z"] < 1.4
    assert step["error"] < 0.01
    assert step["missing"] == 0
    assert list(result["layers"]["gamma"]) == ["0.weight"]
