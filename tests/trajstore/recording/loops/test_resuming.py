"""Recordings that are resumed after the optimizer or the options have changed."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from trajstore.reading.run import open_run

torch = pytest.importorskip("torch")

from tests.trajstore.recording.regression import leave
from tests.trajstore.recording.resumable import SMALL, Training
from trajstore.recording.recorder import Recorder


@pytest.mark.parametrize("change", ["unfrozen", "frozen"])
def test_tensors_that_were_unfrozen_or_frozen(change: str, tmp_path: Path):
    """The resumed recording follows the tensors that it has followed before."""
    path, training = tmp_path / "run.zarr", Training()
    model, optimizer = training.model, training.optimizer
    first, all_tensors = list(model[2].parameters()), list(model.parameters())
    before, after = [first, all_tensors][:: 1 if change == "unfrozen" else -1]
    group = optimizer.param_groups[0]
    group["params"] = list(before)
    recorder = Recorder(path, model, optimizer, **SMALL)
    training.run(recorder, range(4))
    state = recorder.state_dict()
    leave(recorder)
    group["params"] = list(after)
    expected = pytest.warns(UserWarning, match=r"2 tensors .* not recorded.*0\.bias")
    with expected if change == "unfrozen" else nullcontext():
        recorder = Recorder(path, model, optimizer, resume=state, **SMALL)
    training.run(recorder, range(4, 8))
    recorder.close()
    run = open_run(path)
    assert run.n_steps == 8
    assert np.isfinite(run.steps.grad_norm).all()
    if change == "frozen":
        frozen = run.steps.grad_sq.isel(layer=slice(0, 2))
        assert (frozen.sum("layer").values[4:] == 0).all()


def test_a_recording_that_cannot_be_resumed_does_not_end_training(tmp_path: Path):
    path, training = tmp_path / "run.zarr", Training()
    recorder = Recorder(path, training.model, training.optimizer, **SMALL)
    training.run(recorder, range(3))
    state = recorder.state_dict()
    recorder.close()
    with pytest.warns(
        UserWarning, match=r"(?s)Nothing more is recorded: .*steps_per_epoch"
    ):
        recorder = Recorder(
            path,
            training.model,
            training.optimizer,
            resume=state,
            steps_per_epoch=2,
            on_error="warn",
            **SMALL,
        )
    training.run(recorder, range(3, 6))
    recorder.close()
    assert open_run(path).n_steps == 3
