"""Calls of `step` that are no steps of training."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import optim
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

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
