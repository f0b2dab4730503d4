"""Epochs and windows of a recording."""

from pathlib import Path

import numpy as np
import pytest

from trajstore.reading.run import open_run

torch = pytest.importorskip("torch")


from tests.trajstore.recording.float64_tables import (
    assert_tables_match,
    expected_references,
    reference,
)
from tests.trajstore.recording.regression import SMALL, record, regression, take_step
from trajstore.recording import write_queue
from trajstore.recording.recorder import Recorder


def test_epochs_are_counted(tmp_path: Path):
    run, _ = record(tmp_path / "run", regression(), 8, steps_per_epoch=3, **SMALL)
    assert run.steps.epoch.values.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert run.steps.iteration.values.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_without_steps_per_epoch_there_is_one_epoch(tmp_path: Path):
    run, _ = record(tmp_path / "run", regression(), 4, **SMALL)
    assert run.steps.epoch.values.tolist() == [0, 0, 0, 0]
    assert run.steps.iteration.values.tolist() == [0, 1, 2, 3]


def test_start_epoch_begins_epochs(tmp_path: Path):
    training = regression()
    with Recorder(
        tmp_path / "run", training.model, training.optimizer, **SMALL
    ) as recorder:
        trace = []
        for length in (2, 3, 1):
            recorder.start_epoch()
            recorder.start_epoch()  # has just begun
            trace += [take_step(training, step) for step in range(length)]
    run = open_run(tmp_path / "run")
    assert run.steps.epoch.values.tolist() == [0, 0, 1, 1, 1, 2]
    assert run.steps.iteration.values.tolist() == [0, 1, 0, 1, 2, 0]
    assert {2, 5} <= set(run.windows["start"].values.tolist())
    assert run.stored.epoch_windows.keys() == {0, 1, 2}
    assert_tables_match(run, trace)


def test_epochs_begin_by_count_or_by_hand(tmp_path: Path):
    training = regression()
    with (
        Recorder(
            tmp_path / "run",
            training.model,
            training.optimizer,
            steps_per_epoch=5,
            **SMALL,
        ) as recorder,
        pytest.raises(
            ValueError, match="`steps_per_epoch` = 5 already determines the epochs"
        ),
    ):
        recorder.start_epoch()


SCHEDULES: dict[str, tuple[dict[str, int], list[int]]] = {
    "epochs": ({"steps_per_epoch": 8}, [0, 1, 2, 4, 8, 16]),
    "end-known": (
        {"steps_per_epoch": 8, "total_steps": 20},
        [0, 1, 2, 4, 8, 16, 18, 19],
    ),
    "reference-every": ({"reference_every": 8}, [0, 1, 2, 4, 8, 16]),
}


@pytest.mark.parametrize(
    ("options", "starts"), SCHEDULES.values(), ids=SCHEDULES.keys()
)
def test_windows_begin_where_the_schedule_says(
    options: dict[str, int], starts: list[int], tmp_path: Path
):
    run, _ = record(tmp_path / "run", regression(), 20, **options, **SMALL)
    assert run.windows["start"].values.tolist() == starts
    expected = np.searchsorted(starts, np.arange(20), side="right") - 1
    assert run.steps.window.values.tolist() == expected.tolist()


COPIED = pytest.mark.parametrize(
    "copied_bytes", [0, write_queue.COPIED_BYTES], ids=["waits", "copies"]
)


@COPIED
def test_more_windows_than_keyframes(
    copied_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(write_queue, "COPIED_BYTES", copied_bytes)
    run, trace = record(
        tmp_path / "run", regression(), 36, reference_every=1, basis=4, **SMALL
    )
    assert run.n_windows == 36
    assert run.stored.array("references/keyframes").shape[0] == 2
    for window, expected in enumerate(expected_references(run, trace)):
        assert np.array_equal(reference(run, window), expected), window


@COPIED
def test_only_large_anchors_make_training_wait(
    copied_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(write_queue, "COPIED_BYTES", copied_bytes)
    training, waits = regression(), []
    path = tmp_path / "run"
    with Recorder(
        path, training.model, training.optimizer, reference_every=1, **SMALL
    ) as recorder:
        background = recorder._session.background
        wait = background.wait

        def counted() -> None:
            waits.append(1)
            wait()

        monkeypatch.setattr(background, "wait", counted)
        for step in range(3):
            take_step(training, step)
        assert len(waits) == (0 if copied_bytes else 1)


def test_two_recorders_agree(tmp_path: Path):
    training = regression()
    with (
        Recorder(tmp_path / "a", training.model, training.optimizer, **SMALL),
        Recorder(tmp_path / "b", training.model, training.optimizer, **SMALL),
    ):
        for step in range(3):
            take_step(training, step)
    a, b = open_run(tmp_path / "a"), open_run(tmp_path / "b")
    assert np.array_equal(a.stored.array("signs")[:], b.stored.array("signs")[:])
    assert a.n_steps == b.n_steps == 3


def test_more_steps_than_were_planned_are_warned_of(tmp_path: Path):
    training = regression()
    recorder = Recorder(
        tmp_path / "run", training.model, training.optimizer, total_steps=2, **SMALL
    )
    for step in range(3):
        take_step(training, step)
    with pytest.warns(
        UserWarning,
        match="3 steps were recorded, but `total_steps` was 2.* The recording is valid",
    ):
        recorder.close()
