"""Calls of `step` that are no steps of training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import optim
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from tests.trajstore.recording.observed import Observed, loss_of, net
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder


@pytest.mark.parametrize("n_optimizers", [1, 2])
def test_steps_that_change_nothing_are_no_rows(n_optimizers: int, tmp_path: Path):
    model, seen = net(), Observed()
    optimizers = [
        optim.AdamW(part, lr=0.01)
        for part in (
            [model.parameters()]
            if n_optimizers == 1
            else [model[0].parameters(), model[2].parameters()]  # type: ignore[index]
        )
    ]
    with Recorder(tmp_path / "run", model, optimizers, exact=True) as recorder:
        get_optimizer_state_dict(model, optimizers)
        for optimizer in optimizers:
            optimizer.step()
        for step in range(4):
            model.zero_grad()
            loss_of(model, step).backward()
            recorder.log(k=step)
            seen.before(model)
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()
            for optimizer in optimizers:
                optimizer.step()
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    np.testing.assert_array_equal(run.steps.k, range(4))


def load_state(model: Any, optimizer: Any) -> None:
    state = get_optimizer_state_dict(model, optimizer)
    set_optimizer_state_dict(model, optimizer, state)


def step_without_gradients(model: Any, optimizer: Any) -> None:
    model.zero_grad()
    optimizer.step()


def step_with_zeros_at_rate_0(model: Any, optimizer: Any) -> None:
    rate = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = 0.0
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = rate


@pytest.mark.parametrize("make", [optim.SGD, optim.AdamW], ids=["SGD", "AdamW"])
@pytest.mark.parametrize(
    "idle",
    [
        *(get_optimizer_state_dict, load_state),
        *(step_without_gradients, step_with_zeros_at_rate_0),
    ],
    ids=["get", "set", "none", "zeros"],
)
@pytest.mark.parametrize("when", [0, 2])
def test_calls_that_train_nothing_are_no_rows(
    idle: Any, make: Any, when: int, tmp_path: Path
):
    model, seen = net(), Observed()
    optimizer = make(model.parameters(), lr=0.01)
    options: dict[str, Any] = {"exact": True, "steps_per_epoch": 2}
    with Recorder(tmp_path / "run", model, optimizer, **options) as recorder:
        for step in range(4):
            if step == when:
                idle(model, optimizer)
            model.zero_grad()
            loss_of(model, step).backward()
            recorder.log(k=step)
            seen.before(model)
            optimizer.step()
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    np.testing.assert_array_equal(run.steps.k, range(4))
    np.testing.assert_array_equal(run.steps.epoch, [0, 0, 1, 1])


def test_the_first_step_of_a_warmup_is_a_row(tmp_path: Path):
    model, seen = net(), Observed()
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    schedule = optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 3)
    with Recorder(tmp_path / "run", model, optimizer, exact=True):
        for step in range(4):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            seen.before(model)
            optimizer.step()
            schedule.step()
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    assert (run.steps.lr[0], run.steps.update_norm[0]) == (0, 0)
