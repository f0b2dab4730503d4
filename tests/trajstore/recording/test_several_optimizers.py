"""Several optimizers that step together."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim

from tests.trajstore.recording.observed import (
    Observed,
    iterate,
    loss_of,
    net,
)
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder


def test_several_optimizers_make_one_row(tmp_path: Path):
    model, seen = net(), Observed()
    optimizers = [
        optim.SGD(model[0].parameters(), lr=0.05),  # type: ignore[index]
        optim.Adam(model[2].parameters(), lr=0.01),  # type: ignore[index]
    ]
    with Recorder(tmp_path / "run", model, optimizers, exact=True) as recorder:
        for step in range(5):
            model.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            recorder.log(loss=loss)
            seen.before(model)
            for optimizer in optimizers[:: -1 if step % 2 else 1]:
                optimizer.step()
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    assert run.steps.lr.values.tolist() == [0.05] * 5
    assert run.steps.lr_1.values.tolist() == [0.01] * 5
    moved = np.diff([*seen.iterates, iterate(model)], axis=0)
    np.testing.assert_allclose(
        run.steps.update_norm, np.linalg.norm(moved, axis=1), rtol=1e-4
    )


def test_a_step_without_one_of_several_optimizers(tmp_path: Path):
    """A GradScaler skips an optimizer whose gradients are not finite."""
    model, seen = net(), Observed()
    optimizers = [
        optim.SGD(model[0].parameters(), lr=0.05),  # type: ignore[index]
        optim.Adam(model[2].parameters(), lr=0.01),  # type: ignore[index]
    ]
    with Recorder(tmp_path / "run", model, optimizers, exact=True):
        for step in range(6):
            model.zero_grad()
            loss_of(model, step).backward()
            seen.before(model)
            for optimizer in optimizers[: 1 if step in {2, 5} else 2]:
                optimizer.step()
    seen.agrees(open_run(tmp_path / "run"), model)


def test_a_step_without_one_of_several_optimizers_keeps_its_scalars(
    tmp_path: Path,
):
    model, seen, n = net(), Observed(), 6
    optimizers = [
        optim.SGD(model[0].parameters(), lr=0.05),  # type: ignore[index]
        optim.SGD(model[2].parameters(), lr=0.05),  # type: ignore[index]
    ]
    path = tmp_path / "run"
    with Recorder(path, model, optimizers, exact=True, samples=2) as recorder:
        for step in range(n):
            optimizers[0].param_groups[0]["lr"] = 0.01 * (step + 1)
            model.zero_grad()
            loss_of(model, step).backward()
            recorder.log(first=step)
            recorder.log_samples([step, step + 1])
            recorder.take_gradient()
            seen.before(model)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizers[0].step()
            if step % 3 == 0:
                recorder.log(second=step)
                optimizers[1].step()
    run, nan = open_run(path), np.nan
    seen.agrees(run, model)
    moved = np.diff([*seen.iterates, iterate(model)], axis=0)
    np.testing.assert_allclose(
        run.steps.update_norm, np.linalg.norm(moved, axis=1), rtol=1e-4
    )
    np.testing.assert_array_equal(run.steps.first, range(n))
    np.testing.assert_array_equal(run.steps.second, [0, nan, nan, 3, nan, nan])
    np.testing.assert_allclose(run.steps.lr, 0.01 * np.arange(1, n + 1))
    np.testing.assert_array_equal(run.samples[:, 0], range(n))


def test_a_step_without_one_of_several_optimizers_belongs_to_its_epoch(tmp_path: Path):
    model, seen, states = net(), Observed(), []
    optimizers = [
        optim.SGD(model[0].parameters(), lr=0.05),  # type: ignore[index]
        optim.SGD(model[2].parameters(), lr=0.05),  # type: ignore[index]
    ]
    with Recorder(tmp_path / "run", model, optimizers, exact=True) as recorder:
        for epoch in range(4):
            recorder.start_epoch()
            for step in range(2):
                model.zero_grad()
                loss_of(model, step).backward()
                seen.before(model)
                for optimizer in optimizers[: 1 if step == 1 else 2]:
                    optimizer.step()
            if epoch == 1:
                recorder.snapshot("after four")
            if epoch == 2:
                recorder.measure("after six")
            if epoch == 3:
                states.append(recorder.state_dict()["position"]["step"])
    run = open_run(tmp_path / "run")
    seen.agrees(run, model)
    assert run.steps.epoch.values.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert run.steps.iteration.values.tolist() == [0, 1] * 4
    assert run.stored.document.snapshots["after four"].step == 4
    assert run.measured("after six").stored.step_numbers.tolist() == [6]
    assert states == [8]
