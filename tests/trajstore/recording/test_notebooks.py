"""Recordings in a notebook, whose cells run within an event loop and are run again."""

import asyncio
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzers import path_geometry, store_geometry
from trajstore.reading.run import open_run
from trajstore.reading.verify import problems
from trajstore.store.journal import recover

torch = pytest.importorskip("torch")

from tests.trajstore.recording.regression import SMALL, regression, take_step
from trajstore.recording.recorder import Recorder


def in_cell(cell: Callable[[], Any]) -> Any:
    """Run a function within a running event loop, as a notebook does."""

    async def run() -> Any:
        return cell()

    return asyncio.run(run())


@pytest.mark.parametrize("journal", [False, True])
def test_all_of_a_recording_works_in_cells(journal: bool, tmp_path: Path):
    training, path = regression(), tmp_path / "run.zarr"
    options: dict[str, Any] = {**SMALL, "journal": journal, "flush_rows": 2}
    recorder = in_cell(
        lambda: Recorder(path, training.model, training.optimizer, **options)
    )
    in_cell(lambda: [take_step(training, step) for step in range(3)])
    in_cell(lambda: recorder.snapshot("three"))
    in_cell(lambda: recorder.measure("other"))
    state = in_cell(recorder.state_dict)
    live = in_cell(lambda: open_run(path).steps.grad_norm.values)
    assert np.isfinite(live).all()
    in_cell(recorder.close)
    resumed = in_cell(
        lambda: Recorder(
            path, training.model, training.optimizer, resume=state, **options
        )
    )
    in_cell(lambda: take_step(training, 3))
    in_cell(resumed.close)
    run = in_cell(lambda: open_run(path))
    assert run.n_steps == 4
    for compute in (path_geometry, store_geometry):
        geometry: Any = in_cell(partial(compute, run))
        assert np.isfinite(in_cell(geometry.compute).gamma.values[:-1]).all()
    assert in_cell(lambda: list(problems(run, track=iter))) == []


def test_a_journal_is_recovered_in_a_cell(tmp_path: Path):
    training, path = regression(), tmp_path / "run.zarr"
    recorder = Recorder(path, training.model, training.optimizer, journal=True, **SMALL)
    for step in range(3):
        take_step(training, step)
    copy = tmp_path / "copy.zarr"
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns(".lock"))
    recorder.close()
    assert in_cell(lambda: recover(copy)) == 3


def test_a_cell_that_failed_is_run_again(tmp_path: Path):
    """The recorder of the failed cell is still open, and keeps its store and its hooks."""
    training = regression()

    def cell(path: Path) -> Recorder:
        recorder = Recorder(path, training.model, training.optimizer, **SMALL)
        take_step(training, 0)
        return recorder

    first = in_cell(lambda: cell(tmp_path / "run.zarr"))
    with pytest.raises(FileExistsError, match="does not overwrite another"):
        in_cell(lambda: cell(tmp_path / "run.zarr"))
    second = in_cell(lambda: cell(tmp_path / "run-2.zarr"))
    first.close()
    take_step(training, 1)
    second.close()
    assert open_run(tmp_path / "run.zarr").n_steps == 2
    assert open_run(tmp_path / "run-2.zarr").n_steps == 2


def test_an_interrupted_cell_keeps_its_steps(tmp_path: Path):
    training, path = regression(), tmp_path / "run.zarr"

    def cell() -> None:
        with Recorder(path, training.model, training.optimizer, **SMALL):
            take_step(training, 0)
            raise KeyboardInterrupt("stop")

    with pytest.raises(KeyboardInterrupt, match="stop"):
        in_cell(cell)
    run = open_run(path)
    assert (run.n_steps, run.status) == (1, "failed")
