"""Logged scalars and learning rates."""

from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajstore.reading.run import open_run

torch = pytest.importorskip("torch")


from tests.trajstore.recording.regression import SMALL, regression, take_step
from tests.trajstore.recording.unusual_models import groups
from trajstore.recording.recorder import Recorder


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    training = regression()
    with Recorder(
        tmp_path / "fixture", training.model, training.optimizer, **SMALL
    ) as recorder:
        yield recorder


def test_learning_rates_of_every_group_are_recorded(tmp_path: Path):
    training = groups()
    with Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL):
        take_step(training, 0)
        training.optimizer.param_groups[1]["lr"] = torch.tensor(0.5)
        take_step(training, 1)
        training.optimizer.param_groups[1]["lr"].fill_(0.25)
        take_step(training, 2)
    steps = open_run(tmp_path / "run").steps
    assert steps.lr.values.tolist() == [0.1, 0.1, 0.1]
    assert steps.lr_1.values.tolist() == [0.01, 0.5, 0.25]


def test_scalars_belong_to_the_next_step_and_the_last_wins(tmp_path: Path):
    training = regression()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL
    ) as recorder:
        recorder.log(early=1, twice=1.0)
        recorder.log(twice=2.0)
        take_step(training, 0)
        take_step(training, 1)
        recorder.log(late=np.float64(0.5), early=True)
        take_step(training, 2)
        recorder.log(late=7, after=torch.tensor([4.0]))
        recorder.log(after=8)
    steps = open_run(tmp_path / "run").steps
    nan = np.nan
    np.testing.assert_array_equal(steps.early, [1, nan, 1])
    np.testing.assert_array_equal(steps.twice, [2, nan, nan])
    # Scalars of one step are not overwritten by scalars of another step.
    np.testing.assert_array_equal(steps.late, [nan, nan, 0.5])
    np.testing.assert_array_equal(steps.after, [nan, nan, 8])


def test_scalars_after_the_last_step_keep_the_others_of_its_row(tmp_path: Path):
    training = regression()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL
    ) as recorder:
        take_step(training, 0)
        recorder.log(kept=3)
        take_step(training, 1)
        recorder.flush()
        recorder.log(added=4)
    steps = open_run(tmp_path / "run").steps
    np.testing.assert_array_equal(steps.kept, [np.nan, 3])
    np.testing.assert_array_equal(steps.added, [np.nan, 4])
    assert np.isfinite(steps.grad_norm).all()


def test_scalars_of_a_run_without_steps_are_dropped(tmp_path: Path):
    training = regression()
    recorder = Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL)
    recorder.log(alone=1)
    with pytest.warns(UserWarning, match=r"Values were logged.*saw no optimizer step"):
        recorder.close()
    run = open_run(tmp_path / "run")
    assert (run.n_steps, run.status) == (0, "complete")


@pytest.mark.parametrize("n_lost", [9, 10])
def test_a_recorder_whose_optimizer_is_no_longer_used_is_told_of(
    n_lost: int, tmp_path: Path
):
    """The loop goes on with copies of the model and the optimizer."""
    training = regression()
    recorder = Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL)
    for step in range(12):
        recorder.log(loss=step)
        take_step(training, step)
    model, optimizer = deepcopy((training.model, training.optimizer))
    for step in range(n_lost):
        recorder.log(loss=step, other=1)
        model(torch.ones(2, 40)).square().mean().backward()
        optimizer.step()
    told = pytest.warns(UserWarning, match="logged 10 times after the last step")
    with told if n_lost == 10 else nullcontext():
        recorder.close()
    assert open_run(tmp_path / "run").n_steps == 12


def test_logged_tensors_are_copies(tmp_path: Path):
    training = regression()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL
    ) as recorder:
        value = torch.tensor(1.0)
        recorder.log(value=value)
        take_step(training, 0)
        value.add_(10)
        recorder.log(value=value)
        take_step(training, 1)
        value.fill_(-1)
    assert open_run(tmp_path / "run").steps.value.values.tolist() == [1, 11]


def test_many_names_fit(tmp_path: Path):
    training = regression()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, flush_rows=1, **SMALL
    ) as recorder:
        for step in range(3):
            recorder.log(**{f"m{i}": step + i for i in range(20 * (step + 1))})
            take_step(training, step)
    steps = open_run(tmp_path / "run").steps
    np.testing.assert_array_equal(steps.m59, [np.nan, np.nan, 61])
    np.testing.assert_array_equal(steps.m0, [0, 1, 2])


TAKEN = [
    "lr",
    "lr_1",
    "step_size",
    "step_size_1",
    "step",
    "epoch",
    "iteration",
    "window",
    "layer",
]
TAKEN += ["wall_time", "grad_norm", "update_norm", "param_norm"]


@pytest.mark.parametrize("name", TAKEN)
def test_names_of_the_recorder_are_taken(name: str, recorder: Recorder):
    with pytest.raises(ValueError, match=rf"'{name}' is reserved"):
        recorder.log(**{name: 1.0})


@pytest.mark.parametrize("name", ["grad_sq", "basis"])
def test_names_of_tables_are_taken(name: str, recorder: Recorder):
    with pytest.raises(ValueError, match=rf"'{name}' is reserved"):
        recorder.log(**{name: 1.0})


def test_several_numbers_are_not_a_scalar(recorder: Recorder):
    with pytest.raises(ValueError, match=r"'loss' must be one number.*shape \(2,\)"):
        recorder.log(loss=torch.ones(2))


@pytest.mark.parametrize("value", ["0.5", None, [1.0]], ids=repr)
def test_scalars_must_be_numbers(value: Any, recorder: Recorder):
    with pytest.raises(
        TypeError,
        match="'loss' must be a real number or a tensor of one real number, got",
    ):
        recorder.log(loss=value)


def test_a_complex_tensor_is_not_a_scalar(recorder: Recorder):
    with pytest.raises(TypeError, match="'loss' must be"):
        recorder.log(loss=torch.tensor(1j))
