"""Errors of the writer reach the training loop."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajstore.reading.run import open_run
from trajstore.store.row_table import RowTable

torch = pytest.importorskip("torch")


from tests.trajstore.recording.regression import (
    SMALL,
    Training,
    count_hooks,
    regression,
    take_step,
)
from trajstore.recording.recorder import Recorder


def break_after(
    n_batches: int, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., object]:
    """Make the writer fail after `n_batches` batches of rows."""
    append, calls = RowTable.append, []

    def append_rows(self: RowTable, *args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) > n_batches:
            raise OSError("no space left")
        append(self, *args, **kwargs)

    monkeypatch.setattr(RowTable, "append", append_rows)
    return append_rows


def train_until_error(training: Training) -> int:
    """Take steps until a step raises an error; return the number of steps before it."""
    for step in range(100):
        try:
            take_step(training, step)
        except RuntimeError:
            return step
        time.sleep(0.02)
    return 100


def test_an_error_of_the_writer_surfaces_at_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = regression()
    break_after(1, monkeypatch)
    path = tmp_path / "run"
    recorder = Recorder(path, training.model, training.optimizer, flush_rows=2, **SMALL)
    # Writing the batch of steps 2 and 3 fails.
    assert train_until_error(training) in {4, 5}
    with pytest.raises(RuntimeError, match=r"failed \(OSError\('no space") as again:
        training.optimizer.step()
    assert isinstance(again.value.__cause__, OSError)
    with pytest.raises(RuntimeError, match="no space left"):
        recorder.flush()
    with pytest.raises(RuntimeError, match="no space left"):
        recorder.close()
    assert count_hooks(training.optimizer) == 0
    run = open_run(path)
    assert run.n_steps == 2
    assert np.isfinite(run.steps.grad_norm).all()
    assert not run.has_final


def test_an_error_of_the_writer_surfaces_at_a_flush_or_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = regression()
    break_after(0, monkeypatch)
    recorder = Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL)
    take_step(training, 0)
    with pytest.raises(RuntimeError, match="committed earlier stays readable"):
        recorder.close()
    assert count_hooks(training.optimizer) == 0


def test_an_error_of_the_writer_does_not_mask_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = regression()
    break_after(0, monkeypatch)
    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt, match="by hand") as raised,
        Recorder(tmp_path / "run", training.model, training.optimizer, **SMALL),
    ):
        take_step(training, 0)
        raise KeyboardInterrupt("by hand")
    assert "no space left" in raised.value.__notes__[0]


@pytest.mark.parametrize("n_batches", [0, 1], ids=["at-the-end", "at-a-step"])
def test_a_run_whose_writer_failed_is_interrupted(
    n_batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = regression()
    break_after(n_batches, monkeypatch)
    path = tmp_path / "run"
    recorder = Recorder(path, training.model, training.optimizer, flush_rows=2, **SMALL)
    if n_batches:
        train_until_error(training)
    else:
        take_step(training, 0)
    with pytest.raises(RuntimeError, match="no space left"):
        recorder.close()
    assert open_run(path).status == "interrupted"


def test_an_error_of_the_writer_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = regression()
    break_after(0, monkeypatch)
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="no space left") as raised,
        Recorder(
            tmp_path / "run", training.model, training.optimizer, **SMALL
        ) as recorder,
    ):
        take_step(training, 0)
        recorder.flush()
    assert not hasattr(raised.value, "__notes__")
