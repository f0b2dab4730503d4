"""Rows become visible to readers when they are flushed."""

import time
from pathlib import Path

import numpy as np
import pytest

from trajstore.reading.run import open_run

torch = pytest.importorskip("torch")


from tests.trajstore.recording.regression import (
    SMALL,
    Array,
    record,
    regression,
    take_step,
)
from trajstore.recording.recorder import Recorder


def test_rows_are_visible_after_a_flush(tmp_path: Path):
    training = regression()
    path = tmp_path / "run"
    with Recorder(path, training.model, training.optimizer, **SMALL) as recorder:
        for step in range(5):
            take_step(training, step)
            assert open_run(path).n_steps == step
            recorder.flush()
            run = open_run(path)
            assert (run.n_steps, run.status, run.has_final) == (
                step + 1,
                "running",
                False,
            )
            assert np.isfinite(run.steps.grad_norm).all()
        recorder.flush()
    assert open_run(path).status == "complete"


def wait_for_steps(path: Path, n: int) -> int:
    """Return the number of visible rows when n rows are visible, or after a timeout."""
    for _ in range(200):
        if open_run(path).n_steps >= n:
            break
        time.sleep(0.01)
    return open_run(path).n_steps


def test_rows_are_flushed_by_number(tmp_path: Path):
    training = regression()
    path = tmp_path / "run"
    with Recorder(path, training.model, training.optimizer, flush_rows=3, **SMALL):
        for step in range(5):
            take_step(training, step)
        assert wait_for_steps(path, 3) == 3
        # The update of a step is known when the next step begins.
        take_step(training, 5)
        take_step(training, 6)
        assert wait_for_steps(path, 6) == 6


@pytest.mark.parametrize(
    ("seconds", "visible"), [(0.1, 1), (1000.0, 0)], ids=["soon", "late"]
)
def test_rows_are_flushed_by_time(seconds: float, visible: int, tmp_path: Path):
    training = regression()
    path, options = tmp_path / "run", {"flush_seconds": seconds, **SMALL}
    with Recorder(path, training.model, training.optimizer, **options):
        take_step(training, 0)
        time.sleep(0.15)
        take_step(training, 1)
        assert wait_for_steps(path, visible) == visible


@pytest.mark.parametrize("flush_rows", [1, 1000])
def test_how_rows_are_flushed_does_not_change_them(flush_rows: int, tmp_path: Path):
    def rows(name: str, flush_rows: int) -> dict[str, Array]:
        run, _ = record(
            tmp_path / name,
            regression(),
            20,
            steps_per_epoch=4,
            flush_rows=flush_rows,
            **SMALL,
        )
        dropped = ["wall_time", "lr"]
        values = {str(k): v.values for k, v in run.steps.drop_vars(dropped).items()}
        return values | {"signs": run.stored.array("signs")[:]}

    expected, values = rows("a", 7), rows("b", flush_rows)
    assert expected.keys() == values.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(values[name], value)
