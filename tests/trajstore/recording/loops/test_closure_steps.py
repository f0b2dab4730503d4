"""Closures that are evaluated at any points and any number of times."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim

from tests.trajstore.recording.observed import Observed, iterate, loss_of, net
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder


class Armijo(optim.Optimizer):
    """Backtracks; makes the gradient itself, after the closure has returned."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1.0})

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        loss = closure()
        loss.backward()
        parameters, rate = self.param_groups[0]["params"], 8.0
        with torch.no_grad():
            start = [p.clone() for p in parameters]
            square = sum(p.grad.square().sum() for p in parameters)
            while True:
                for p, x in zip(parameters, start, strict=True):
                    p.copy_(x - rate * p.grad)
                if closure() <= loss - 0.1 * rate * square or rate < 1e-6:
                    return loss
                rate /= 2


class Sharpness(optim.SGD):
    """Moves by gradients at perturbed parameters."""

    def step(self, closure: Any = None) -> Any:
        parameters = self.param_groups[0]["params"]
        start = [p.detach().clone() for p in parameters]
        for p in parameters:
            p.data.add_(p.grad, alpha=0.1)
        with torch.enable_grad():
            loss = closure()
        for p, x in zip(parameters, start, strict=True):
            p.data = x
        super().step()
        return loss


class Ahead(optim.SGD):
    """Evaluates its closure only where it extrapolates to (Nesterov)."""

    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            p.data.mul_(1.1)
        loss = closure()
        for p in self.param_groups[0]["params"]:
            p.data.mul_(1 / 1.1)
        super().step()
        return loss


def record(path: Path, make: Any, *, before: bool, inside: bool) -> tuple[Any, ...]:
    """Train with gradients made before the step, inside the closure, or neither."""
    model, seen = net(), Observed()
    optimizer = make(model.parameters())
    with Recorder(path, model, optimizer, exact=True):
        for step in range(6):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            seen.before(model)
            if not before:
                optimizer.zero_grad()

            def closure(step: int = step) -> Any:
                if inside:
                    optimizer.zero_grad()
                loss = loss_of(model, step)
                if inside:
                    loss.backward()
                return loss

            optimizer.step(closure)
    run = open_run(path)
    moved = np.linalg.norm(np.diff([*seen.iterates, iterate(model)], axis=0), axis=1)
    np.testing.assert_allclose(run.steps.update_norm, moved, rtol=1e-4)
    return run, seen, model


CASES = {
    "armijo": (Armijo, False, False),
    "sharpness": (lambda p: Sharpness(p, lr=0.05), True, True),
    "lbfgs": (lambda p: optim.LBFGS(p, max_iter=4), False, True),
    "wolfe": (
        lambda p: optim.LBFGS(p, max_iter=4, line_search_fn="strong_wolfe"),
        False,
        True,
    ),
}


@pytest.mark.parametrize(("make", "before", "inside"), CASES.values(), ids=CASES.keys())
def test_the_gradient_at_the_start_is_recorded(
    make: Any, before: bool, inside: bool, tmp_path: Path
):
    run, seen, model = record(tmp_path / "run", make, before=before, inside=inside)
    seen.agrees(run, model)


@pytest.mark.filterwarnings("ignore:The gradient of step")
def test_a_gradient_that_is_not_made_at_the_start_is_nan(tmp_path: Path):
    run, seen, _ = record(
        tmp_path / "run", lambda p: Ahead(p, lr=0.05), before=False, inside=True
    )
    assert run.n_steps == len(seen.iterates)
    assert np.isnan(run.steps.grad_norm).all()
    norms = np.linalg.norm(np.array(seen.iterates), axis=1)
    np.testing.assert_allclose(run.steps.param_norm, norms, rtol=1e-5)


def test_a_gradient_that_is_not_known_is_warned_of(tmp_path: Path):
    with pytest.warns(UserWarning, match="gradient of step 0 is not known") as w:
        record(tmp_path / "run", lambda p: Ahead(p, lr=0.05), before=False, inside=True)
    assert [warning.filename for warning in w] == [__file__]


class Given(optim.SGD):
    """Steps that are given something else than a closure."""

    def step(self, *given: Any, **others: Any) -> None:  # type: ignore[override]
        for argument in (*given, *others.values()):
            make = argument["make"] if isinstance(argument, dict) else argument
            assert isinstance(make, float | torch.Tensor | nn.Module) or callable(make)
            if isinstance(make, nn.Module):
                assert next(make.parameters()) is self.param_groups[0]["params"][0]
            elif callable(make):
                make()
        super().step()


GIVEN: dict[str, dict[str, Any]] = {
    "a loss": {"given": [0.5]},
    "a direction": {"given": [torch.ones(3)], "scale": 2.0},
    "the model": {"given": ["model"]},
    "options with a closure": {"given": [{"make": "closure"}]},
    "a function by name": {"given": [0.5], "loss_fn": "closure"},
    "the model and a function": {"given": ["model", "closure"]},
}
"""Arguments of a step, by position and by name; "model" and "closure" stand for these."""


@pytest.mark.parametrize("case", GIVEN)
def test_arguments_that_are_no_closures_reach_the_step(case: str, tmp_path: Path):
    """As in other people's line searches, natural gradients and adaptive step sizes."""
    model, seen = net(), Observed()
    optimizer = Given(model.parameters(), lr=0.05)

    def filled(argument: Any, closure: Any) -> Any:
        if isinstance(argument, dict):
            return {name: filled(value, closure) for name, value in argument.items()}
        if isinstance(argument, str):
            return {"model": model, "closure": closure}[argument]
        return argument

    with Recorder(tmp_path / "run", model, optimizer, exact=True):
        for step in range(4):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            seen.before(model)
            if "function" in case:
                optimizer.zero_grad()

            def closure(step: int = step) -> None:
                model.zero_grad()
                loss_of(model, step).backward()

            named = dict(GIVEN[case])
            given = [filled(argument, closure) for argument in named.pop("given")]
            optimizer.step(*given, **filled(named, closure))
    seen.agrees(open_run(tmp_path / "run"), model)
