"""The recorder warns of gradients that change after they were recorded."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim

from tests.trajstore.recording.observed import Observed, loss_of, net
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder

N_STEPS = 3


def halves(model: Any, fused: tuple[bool, bool] = (False, False)) -> list[Any]:
    """Return two optimizers."""
    return [
        optim.SGD(model[i].parameters(), lr=0.05, fused=is_fused)
        for i, is_fused in zip((0, 2), fused, strict=True)
    ]


def expect_warning() -> AbstractContextManager[Any]:
    return pytest.warns(UserWarning, match="have changed since they were recorded")


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


@pytest.mark.parametrize("loop", [step_in_turn, clip_in_turn])
def test_optimizers_that_step_in_turn(
    loop: Callable[[Any, list[Any], int], None], tmp_path: Path
):
    model = net()
    optimizers = halves(model)
    with (
        expect_warning() as warnings,
        Recorder(tmp_path / "run", model, optimizers, reference_every=2),
    ):
        for step in range(4):
            loop(model, optimizers, step)
    assert len(warnings) == open_run(tmp_path / "run").n_windows > 1


def test_an_optimizer_that_steps_on_its_own_in_some_rows(tmp_path: Path):
    model = net()
    optimizers = halves(model)
    with expect_warning() as warnings, Recorder(tmp_path / "run", model, optimizers):
        every_second_time(model, optimizers, 0)
        assert not warnings.list
        every_second_time(model, optimizers, 1)
    assert [w.filename for w in warnings.list] == [__file__]


def test_a_step_within_the_backward_pass(tmp_path: Path):
    model = net()
    optimizers = {p: optim.SGD([p], lr=0.05) for p in model.parameters()}

    def step(parameter: Any) -> None:
        optimizers[parameter].step()
        parameter.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    with (
        expect_warning(),
        Recorder(tmp_path / "run", model, list(optimizers.values())),
    ):
        loss_of(model, 0).backward()


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
