"""Gradients that change after the first of several optimizers was about to step."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim

from tests.trajstore.recording.observed import (
    Observed,
    adjacent,
    dense,
    gradient,
    iterate,
    loss_of,
    net,
)
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder

N_STEPS = 3


def halves(model: Any, fused: tuple[bool, bool] = (False, False)) -> list[Any]:
    """Return two optimizers."""
    return [
        optim.SGD(model[i].parameters(), lr=0.05, fused=is_fused)
        for i, is_fused in zip((0, 2), fused, strict=True)
    ]


FUSED = {
    "none-fused": (False, False),
    "both-fused": (True, True),
    "first-fused": (True, False),
    "second-fused": (False, True),
}


@pytest.mark.parametrize("fused", FUSED.values(), ids=FUSED.keys())
@pytest.mark.parametrize("unscaled", [[], [0], [1], [0, 1]], ids="unscaled={}".format)
def test_the_scale_that_a_scaler_left_in_gradients_is_removed(
    unscaled: list[int], fused: tuple[bool, bool], tmp_path: Path
):
    model, seen = net(), Observed()
    optimizers = halves(model, fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Recorder(tmp_path / "run", model, optimizers, exact=True):
        for step in range(N_STEPS):
            model.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            for i in unscaled:
                scaler.unscale_(optimizers[i])
            without_scaler = deepcopy(model)
            without_scaler.zero_grad()
            loss_of(without_scaler, step).backward()
            seen.before(without_scaler)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
    seen.agrees(open_run(tmp_path / "run"), model)


def step_in_turn(model: Any, optimizers: list[Any], step: int) -> None:
    for i, optimizer in enumerate(optimizers):
        optimizer.zero_grad()
        loss_of(model, step + i).backward()
        optimizer.step()


def clip_in_turn(model: Any, optimizers: list[Any], step: int) -> None:
    model.zero_grad()
    loss_of(model, step).backward()
    for optimizer in optimizers:
        parameters = optimizer.param_groups[0]["params"]
        nn.utils.clip_grad_norm_(parameters, 1e-3)
        optimizer.step()


def every_second_time(model: Any, optimizers: list[Any], step: int) -> None:
    """Let the second optimizer step on a gradient of its own in every second row."""
    optimizers[0].zero_grad()
    loss_of(model, step).backward()
    optimizers[0].step()
    if step % 2:
        optimizers[1].zero_grad()
        loss_of(model, step + 1).backward()
        optimizers[1].step()


def expect_warning() -> AbstractContextManager[Any]:
    return pytest.warns(
        UserWarning, match=r"of step \d is not known, and is recorded as"
    )


class Own:
    """The gradients that optimizers step with, kept by the test."""

    def __init__(self, model: Any, optimizers: list[Any]) -> None:
        self.seen, self._model = Observed(), model
        self._gradient: dict[int, Any] = {}
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._note)

    def _note(self, optimizer: Any, *_: Any) -> None:
        if not self._gradient:
            self.seen.iterates.append(iterate(self._model))
        self._gradient |= {
            id(p): p.grad.double().numpy().ravel().copy()
            for p in optimizer.param_groups[0]["params"]
            if p.grad is not None
        }

    def end(self) -> None:
        parts = [
            self._gradient.get(id(p), np.zeros(p.numel()))
            for p in self._model.parameters()
        ]
        self.seen.gradients.append(np.concatenate(parts))
        self._gradient = {}


@pytest.mark.parametrize(
    ("loop", "first"),
    [(step_in_turn, 0), (clip_in_turn, 0), (every_second_time, 1)],
    ids=["step_in_turn", "clip_in_turn", "every_second_time"],
)
def test_optimizers_that_step_in_turn_are_recorded_with_their_own_gradients(
    loop: Callable[[Any, list[Any], int], None], first: int, tmp_path: Path
):
    model, path = net(), tmp_path / "run"
    optimizers = halves(model)
    with (
        expect_warning() as caught,
        Recorder(path, model, optimizers, exact=True, reference_every=3),
    ):
        # The recorder's hook runs after those that are registered later.
        own = Own(model, optimizers)
        for step in range(8):
            loop(model, optimizers, step)
            own.end()
    assert [w.filename for w in caught.list] == [__file__]
    run = open_run(path)
    norms = [np.linalg.norm(g) for g in own.seen.gradients]
    found = run.steps.grad_norm.values
    assert np.isnan(found).tolist() == [k == first for k in range(8)]
    for k in range(8):
        if k <= first:
            # What the test compares; the row of step `first` is checked above.
            own.seen.gradients[k] = dense(
                run,
                run.stored.large_rows(
                    "gradient", slice(k, k + 1), slice(0, run.layout.size)
                )[0],
            )
    own.seen.agrees(run, model)
    np.testing.assert_allclose(found[first + 1 :], norms[first + 1 :], rtol=1e-5)
    moved = np.diff([*own.seen.iterates, iterate(model)], axis=0)
    np.testing.assert_allclose(
        run.steps.update_norm, np.linalg.norm(moved, axis=1), rtol=1e-4
    )
    previous = (np.array(own.seen.gradients)[1:] * own.seen.gradients[:-1]).sum(1)
    np.testing.assert_allclose(
        adjacent(run)[first + 2 :], previous[first + 1 :], rtol=1e-4, atol=1e-9
    )


def test_own_gradients_without_their_scale(tmp_path: Path):
    model = net()
    optimizers = halves(model, (True, False))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    norms = []
    with expect_warning(), Recorder(tmp_path / "run", model, optimizers):
        for step in range(4):
            norms.append(0.0)
            for i, optimizer in enumerate(optimizers):
                model.zero_grad()
                scaler.scale(loss_of(model, step + i)).backward()
                held = optimizer.param_groups[0]["params"]
                norms[-1] += sum(float(p.grad.square().sum()) for p in held) / 1024**2
                scaler.step(optimizer)
            scaler.update()
    found = open_run(tmp_path / "run").steps.grad_norm.values
    np.testing.assert_allclose(found[1:], np.sqrt(norms)[1:], rtol=1e-5)


def test_one_tensor_of_two_optimizers_has_no_gradient(tmp_path: Path):
    model = net()
    optimizers = halves(model)
    optimizers[1].add_param_group({"params": [model[0].weight]})  # type: ignore[index]
    with expect_warning(), Recorder(tmp_path / "run", model, optimizers):
        for step in range(3):
            step_in_turn(model, optimizers, step)
    run = open_run(tmp_path / "run")
    assert run.n_steps == 3
    assert np.isnan(run.steps.grad_norm).all()
    assert np.isfinite(run.steps.update_norm).all()
    assert [f.tensors for f in run.stored.document.optimizer] == [(1,), (2, 3), ()]


def test_a_step_within_the_backward_pass(tmp_path: Path):
    model = net()
    optimizers = {p: optim.SGD([p], lr=0.05) for p in model.parameters()}

    def step(parameter: Any) -> None:
        optimizers[parameter].step()
        parameter.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    norms, iterates = [], []
    with (
        expect_warning(),
        Recorder(tmp_path / "run", model, list(optimizers.values())),
    ):
        for k in range(4):
            alone = deepcopy(model)
            loss_of(alone, k).backward()
            norms.append(np.linalg.norm(gradient(alone)))
            iterates.append(iterate(model))
            loss_of(model, k).backward()
    found = open_run(tmp_path / "run").steps
    np.testing.assert_allclose(found.grad_norm[1:], norms[1:], rtol=1e-5)
    assert np.isnan(found.grad_norm[0])
    moved = np.diff([*iterates, iterate(model)], axis=0)
    np.testing.assert_allclose(
        found.update_norm, np.linalg.norm(moved, axis=1), rtol=1e-4
    )


def test_the_gradient_of_the_last_evaluation_of_a_closure_counts(tmp_path: Path):
    class Twice(optim.SGD):
        def step(self, closure: Any = None) -> Any:
            closure()
            return super().step(closure)

    model, seen = net(), Observed()
    optimizers = [
        Twice(model[0].parameters(), lr=0.05),  # type: ignore[index]
        optim.SGD(model[2].parameters(), lr=0.05),  # type: ignore[index]
    ]

    def closure() -> Any:
        model.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    with Recorder(tmp_path / "run", model, optimizers, exact=True):
        closure()
        seen.before(model)
        optimizers[0].step(closure)
        optimizers[1].step()
    seen.agrees(open_run(tmp_path / "run"), model)
