"""Steps that evaluate a closure."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import optim

from tests.trajstore.recording.observed import (
    Observed,
    adjacent,
    loss_of,
    loss_of_array,
    net,
    products,
)
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder


@pytest.mark.parametrize("by_name", [False, True], ids=["positional", "by-name"])
@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.Adagrad])
def test_closure(make: Any, by_name: bool, tmp_path: Path):
    model, seen = net(), Observed()
    optimizer = make(model.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", model, optimizer, exact=True) as recorder:
        for step in range(5):

            def closure(step: int = step) -> Any:
                optimizer.zero_grad()
                loss = loss_of(model, step)
                loss.backward()
                recorder.log(loss=loss)
                seen.before(model)
                return loss

            # The gradients of the previous step are still set.
            by = {"closure": closure}
            found = optimizer.step(**by) if by_name else optimizer.step(closure)
            assert found.item() == pytest.approx(float(loss_of_array(seen, step)))
        optimizer.zero_grad()
        loss_of(model, 9).backward()
        seen.before(model)
        optimizer.step(None)
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    np.testing.assert_allclose(adjacent(run), products(seen), rtol=1e-4, atol=1e-7)


def test_last_evaluation_of_a_closure_is_recorded(tmp_path: Path):
    class Twice(optim.SGD):
        def step(self, closure: Any = None) -> Any:
            closure()
            return super().step(closure)

    model, seen, n = net(), Observed(), 0
    optimizer = Twice(model.parameters(), lr=0.05)

    def closure() -> Any:
        nonlocal n
        optimizer.zero_grad()
        loss = loss_of(model, n)
        loss.backward()
        if n % 2:
            seen.before(model)
        n += 1
        return loss

    with Recorder(tmp_path / "run", model, optimizer, exact=True):
        for _ in range(4):
            optimizer.step(closure)
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    # The first evaluation overwrote the gradient of the previous step.
    assert np.isnan(adjacent(run)).all()


def test_closure_that_is_not_evaluated(tmp_path: Path):
    """The step uses the gradients that it finds, even those of the step before."""

    class Deaf(optim.SGD):
        def step(self, _closure: Any = None) -> Any:
            return super().step()

    model, seen = net(), Observed()
    optimizer = Deaf(model.parameters(), lr=0.05)
    with Recorder(tmp_path / "run", model, optimizer, exact=True):
        loss_of(model, 0).backward()
        for closure in (None, lambda: torch.zeros(()), None):
            seen.before(model)
            optimizer.step(closure)
    seen.agrees(open_run(tmp_path / "run"), model)
