"""Checkpoints of torch.distributed.checkpoint carry a recording."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.stateful import Stateful

from trajstore import Recorder, open_run
from trajstore.integrations.checkpoint import RecorderState

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.distributed:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*single process.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage:UserWarning"),
]


def parts() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def train(model: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        inputs = torch.full((3, 4), float(step + 1))
        model(inputs).square().mean().backward()
        optimizer.step()


def record(path: Path, folder: Path | None = None) -> None:
    """Record 12 steps; with a folder, save after 5, drop what follows, and resume."""
    model, optimizer = parts()
    with Recorder(path, model, optimizer, steps_per_epoch=4) as recorder:
        train(model, optimizer, range(5))
        if folder is None:
            train(model, optimizer, range(5, 12))
            return
        saved = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "recorder": RecorderState(recorder),
        }
        save(saved, checkpoint_id=folder)
        train(model, optimizer, range(5, 8))
    model, optimizer = parts()
    holder = RecorderState()
    loaded = {"model": model.state_dict(), "recorder": holder}
    load(loaded, checkpoint_id=folder)
    model.load_state_dict(loaded["model"])
    assert isinstance(holder.resume, dict)
    optimizer.load_state_dict(optimizer_after(5))
    with Recorder(path, model, optimizer, steps_per_epoch=4, resume=holder.resume):
        train(model, optimizer, range(5, 12))


def optimizer_after(n: int) -> Any:
    model, optimizer = parts()
    train(model, optimizer, range(n))
    return optimizer.state_dict()


def test_a_resumed_recording_equals_one_without_interruption(tmp_path: Path):
    record(tmp_path / "whole.zarr")
    record(tmp_path / "resumed.zarr", tmp_path / "checkpoint")
    whole, resumed = (open_run(tmp_path / f"{n}.zarr") for n in ("whole", "resumed"))
    assert (resumed.n_steps, resumed.status) == (12, "complete")
    for name in ("grad_norm", "update_norm"):
        np.testing.assert_array_equal(resumed.steps[name], whole.steps[name])


def test_a_checkpoint_of_other_ranks_is_refused():
    with pytest.raises(
        KeyError, match=r"no 'rank_0', only \['rank_1'\].*no recording was saved"
    ):
        RecorderState().load_state_dict({"rank_1": b""})


def test_a_recorder_is_a_stateful_and_shows_what_it_does(tmp_path: Path):
    model, optimizer = parts()
    with Recorder(tmp_path / "run.zarr", model, optimizer) as recorder:
        train(model, optimizer, range(2))
        assert repr(recorder) == (
            f"<trajstore.Recorder '{tmp_path}/run.zarr': 2 steps, open>"
        )
        state = RecorderState(recorder)
    assert repr(recorder).endswith("closed>")
    assert isinstance(state, Stateful)


def test_the_log_says_where_it_records_and_when_it_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "trajstore")
    model, optimizer = parts()
    with Recorder(tmp_path / "run.zarr", model, optimizer):
        train(model, optimizer, range(1))
    first, *_, last = (record.getMessage() for record in caplog.records)
    assert first == f"Recording to {tmp_path / 'run.zarr'}."
    assert last == f"The recording at {tmp_path / 'run.zarr'} is closed."
