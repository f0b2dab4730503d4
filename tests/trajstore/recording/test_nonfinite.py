"""Gradients and parameters that are not finite."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajstore.reading.run import open_run

torch = pytest.importorskip("torch")

from torch import nn, optim

from tests.trajstore.recording.float64_tables import (
    RTOL,
    assert_tables_match,
    expected_references,
    expected_tables,
    reference,
)
from tests.trajstore.recording.regression import (
    SMALL,
    Step,
    Training,
    gradients,
    iterate,
    record,
    regression,
    take_step,
)
from tests.trajstore.recording.unusual_models import Module, pull, sgd, vector
from trajstore.recording.recorder import Recorder


class Careful(optim.SGD):
    """Makes no update with gradients that are not finite."""

    def step(self, closure: Any = None) -> Any:
        gradients = [p.grad for p in self.param_groups[0]["params"]]
        if not all(g.isfinite().all() for g in gradients):
            self.zero_grad()
        return super().step(closure)


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["nan", "inf"])
def test_a_gradient_that_is_not_finite_stays_in_its_row(bad: float, tmp_path: Path):
    """The parameters stay finite, as they do if a step is clipped or skipped."""
    m = Module(a=vector(1500), b=vector(6))
    optimizer = Careful(m.parameters(), lr=0.01)
    training = Training(m, optimizer, lambda _: pull(m.a, m.b))
    options = {"reference_every": 3, "flush_rows": 4, **SMALL}

    with (
        warnings.catch_warnings(),
        Recorder(tmp_path / "run", m, training.optimizer, **options),
    ):
        warnings.simplefilter("ignore")
        trace = []
        for step in range(10):
            m.zero_grad()
            training.loss(step).backward()
            before = iterate(training)
            if step == 4:
                m.a.grad[7] = bad  # type: ignore[operator, index]
                spoiled = gradients(training)
                training.optimizer.step()
                trace.append(Step(spoiled, before, iterate(training)))
            else:
                gradient = gradients(training)
                training.optimizer.step()
                trace.append(Step(gradient, before, iterate(training)))
    run = open_run(tmp_path / "run")

    references = expected_references(run, trace)
    for window, expected in enumerate(references):
        assert np.array_equal(reference(run, window), expected)
    with np.errstate(invalid="ignore"):
        for name, (value, scale) in expected_tables(run, trace, references).items():
            measured = run.steps[name].values
            finite = np.isfinite(value)
            assert np.array_equal(np.isfinite(measured), finite), name
            error = np.abs(measured - value)[finite]
            assert (error <= RTOL * scale[finite]).all(), name
    finite_scales = np.isfinite(run.stored.array("scales")[:]).all(1)
    assert (~finite_scales).nonzero()[0].tolist() == [4]
    assert (~np.isfinite(run.steps.grad_norm.values)).nonzero()[0].tolist() == [4]
    assert np.isfinite(run.windows["probes"].values).all()


def test_a_run_that_diverges_is_recorded_to_its_end(tmp_path: Path):
    m = Module(x=vector(4))
    training = Training(m, sgd(m, lr=0.1), lambda s: pull(m.x) * (np.nan if s else 1))
    with (
        warnings.catch_warnings(),
        Recorder(tmp_path / "run", m, training.optimizer, reference_every=2, **SMALL),
    ):
        warnings.simplefilter("ignore")
        for step in range(8):
            take_step(training, step)
    run = open_run(tmp_path / "run")
    assert run.n_steps == 8
    assert np.isnan(run.stored.array("final")[:4]).all()
    assert all(np.isfinite(reference(run, w)).all() for w in range(run.n_windows))
    assert np.isnan(run.steps.grad_norm.values[1:]).all()


def test_a_run_that_diverged_closes_without_a_warning(tmp_path: Path):
    m = Module(x=vector(4))
    training = Training(m, sgd(m), lambda _: pull(m.x) * np.nan)
    record(tmp_path / "run", training, 2, **SMALL)


def test_an_infinite_gradient_causes_no_warning(tmp_path: Path):
    x = nn.Parameter(torch.tensor([-1.0]))
    m = Module(x=x)
    optimizer = torch.optim.SGD(m.parameters(), lr=0.0)
    with Recorder(tmp_path / "run", m, optimizer, **SMALL):
        optimizer.step()
        with torch.no_grad():
            x.fill_(-0.5)
        # The products of this gradient with the anchor and the displacement differ in sign.
        x.grad = torch.tensor([torch.inf])
        optimizer.step()
        x.grad = None
        optimizer.step()


@pytest.mark.parametrize(
    "bad",
    [
        np.nan,
        np.inf,
    ],
    ids=["nan", "inf"],
)
def test_weights_after_a_gradient_that_is_not_finite(bad: float, tmp_path: Path):
    x = vector(6)
    m = Module(x=x, y=vector(3))
    optimizer = Careful(m.parameters(), lr=0.1)
    with Recorder(tmp_path / "run", m, optimizer, reference_every=2, **SMALL):
        for step in range(4):
            m.zero_grad()
            pull(x, m.y).backward()
            if step == 1:
                x.grad[0] = bad
            optimizer.step()
    weights = open_run(tmp_path / "run").windows["weights"].values
    assert np.isfinite(weights).all()
    assert (weights > 0).all()


def test_skipped_steps_have_no_rows(tmp_path: Path):
    """A gradient scaler does not call the optimizer if gradients are infinite."""
    training = regression()
    path = tmp_path / "run"
    with Recorder(path, training.model, training.optimizer, **SMALL) as recorder:
        trace = []
        for step in range(6):
            if step in {0, 3}:
                training.optimizer.zero_grad()
                loss = training.loss(step) * torch.inf
                loss.backward()
                recorder.log(loss=loss)
                continue
            trace.append(take_step(training, step, recorder))
    run = open_run(path)
    assert_tables_match(run, trace)
    assert np.isfinite(run.steps.loss).all()
