"""Resumed recordings, compared with recordings that were not interrupted."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zarr.storage import LocalStore

import analyzers
from trajstore.format.arrays import ENERGIES
from trajstore.reading.run import open_run

torch = pytest.importorskip("torch")


from tests.trajstore.recording.resumable import (
    N_STEPS,
    SMALL,
    SPE,
    Training,
    assert_same_analysis,
    assert_same_bits,
    attempt,
    contents,
    record,
)
from trajstore.recording.recorder import Recorder
from trajstore.tracking.backends.choose import CHOICE


@pytest.mark.parametrize("device", ["cpu", "accelerator"])
@pytest.mark.parametrize(
    ("options", "interruptions"),
    [
        ({}, [0, 1, 2, 3, 7, 20, 35]),
        ({"adam": True}, [7, SPE * 3, 20]),
        ({"basis": 5}, [29]),
        ({"basis": 1}, [SPE * 3]),
        ({"basis": 0}, [7, SPE * 3]),
        ({"basis": 0, "exact": True}, [20]),
        ({"reference_every": 4, "total_steps": N_STEPS}, [SPE * 3 + 1, N_STEPS - 1]),
        ({"reference_every": 1}, [32, 33, 34]),  # around a keyframe
        ({"exact": True, "flush_rows": 7}, [20]),
    ],
    ids=str,
)
def test_a_resumed_recording_equals_an_uninterrupted_one(
    device: str,
    options: dict[str, Any],
    interruptions: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    if device == "accelerator":
        monkeypatch.setenv(CHOICE, "eager")

    def keep(step: int, recorder: Recorder) -> None:
        if step == 15:
            recorder.snapshot("middle")

    whole, resumed = tmp_path / "whole.zarr", tmp_path / "resumed.zarr"
    record(whole, each=keep, **options)
    start, state = 0, None
    for stop in [*interruptions, None]:
        checkpoint = tmp_path / f"{stop}.pt"
        record(
            resumed,
            range(start, N_STEPS if stop is None else stop),
            save=None if stop is None else checkpoint,
            each=keep,
            resume=state or False,
            **options,
        )
        start, state = stop or 0, checkpoint
    found = open_run(resumed)
    assert_same_bits(found, open_run(whole))
    if options == {}:
        assert_same_analysis(found, open_run(whole))
    assert [r["step"] for r in found.stored.document.resumes] == interruptions
    assert {r["n_missing"] for r in found.stored.document.resumes} == {0}


def test_a_gradient_without_a_step_does_not_count_as_the_previous_one(tmp_path: Path):
    """A loop may skip a step if its loss is not finite."""

    def run(recorder: Recorder, steps: range) -> None:
        for step in steps:
            inputs = torch.ones(4, 40) * (step + 1)
            optimizer.zero_grad()
            model(inputs).sin().sum().backward()
            recorder.take_gradient()
            if step != 4:
                optimizer.step()

    options = SMALL | {"steps_per_epoch": SPE}
    for path, stops in ((tmp_path / "whole", [9]), (tmp_path / "run", [5, 9])):
        training = Training()
        model, optimizer = training.model, training.optimizer
        resume: Any = False
        for first, stop in zip([0, *stops], stops, strict=False):
            with Recorder(path, model, optimizer, resume=resume, **options) as recorder:
                run(recorder, range(first, stop))
                resume = recorder.state_dict()
    assert_same_bits(open_run(tmp_path / "run"), open_run(tmp_path / "whole"))


def test_epochs_started_by_hand_are_resumed(tmp_path: Path):
    def begin(step: int, recorder: Recorder) -> None:
        if step in {9, 20, 31}:
            recorder.start_epoch()

    options: dict[str, Any] = {"steps_per_epoch": None, "reference_every": 8}
    record(tmp_path / "whole.zarr", range(60), each=begin, **options)
    # The epoch starts before the checkpoint in one case, and after it in the other.
    for stop in (20, 25):
        path, saved = tmp_path / f"{stop}.zarr", tmp_path / f"{stop}.pt"
        record(path, range(stop), save=saved, each=begin, **options)
        record(path, range(stop, 60), each=begin, resume=saved, **options)
        assert_same_bits(open_run(path), open_run(tmp_path / "whole.zarr"))


def test_without_a_state_only_the_gradient_before_is_unknown(tmp_path: Path):
    record(tmp_path / "whole.zarr", range(60))
    path, saved = tmp_path / "run.zarr", tmp_path / "saved.pt"
    record(path, range(25), save=saved)
    record(path, range(25, 60), resume=saved, step=25)
    found, expected = (
        contents(open_run(path)),
        contents(open_run(tmp_path / "whole.zarr")),
    )
    products = found["tables"][:, :, 0]
    assert np.isnan(products[25]).all()
    assert np.isfinite(np.delete(products, 25, 0)).all()
    found["tables"][25, :, 0] = expected["tables"][25, :, 0]
    # The energies of the window of step 25 are not known either.
    window = int(found["window"][25])
    assert np.isnan(found[ENERGIES][window]).all()
    found[ENERGIES][window] = expected[ENERGIES][window]
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name


def test_steps_that_were_lost_are_nan_and_counted(tmp_path: Path):
    path, saved = tmp_path / "run.zarr", tmp_path / "saved.pt"
    record(tmp_path / "whole.zarr", range(60))
    record(path, range(40), save=saved)
    # The store ends before the checkpoint, as when the last rows were never flushed.
    other = tmp_path / "other.zarr"
    record(other, range(33), save=tmp_path / "unused.pt")
    training = Training()
    training.restore(torch.load(saved, weights_only=True))
    options: dict[str, Any] = SMALL | {"steps_per_epoch": SPE}
    with Recorder(
        other, training.model, training.optimizer, resume=True, step=40, **options
    ) as recorder:
        training.run(recorder, range(40, 60))
    run = open_run(other)
    assert run.stored.document.resumes[0]["n_missing"] == 2  # 33 + 5 were recorded
    geometry = analyzers.path_geometry(run).compute()
    missing = np.isnan(geometry["gamma"].values)
    assert np.flatnonzero(missing).tolist() == [38, 39]
    assert analyzers.epoch_means(geometry).n_missing.sum() == 2
    np.testing.assert_array_equal(run.steps["epoch"], np.arange(60) // SPE)
    np.testing.assert_array_equal(run.steps["iteration"], np.arange(60) % SPE)
    exact = analyzers.path_geometry(open_run(tmp_path / "whole.zarr")).compute()
    # After the gap, anchors are different, and so are their errors.
    error = (geometry.gamma - exact.gamma)[~missing]
    assert abs(error / np.hypot(geometry.gamma_stderr, exact.gamma_stderr)).max() < 5
    assert run.windows.start.values.tolist()[-5:] == [36, 40, 42, 48, 54]


def test_a_recording_may_begin_late(tmp_path: Path):
    path = tmp_path / "run.zarr"
    record(path, range(20, 50), resume=True, step=20)
    run = open_run(path)
    assert run.n_steps == 50
    geometry = analyzers.path_geometry(run).compute()
    np.testing.assert_array_equal(np.isnan(geometry.gamma), np.arange(50) < 20)


def test_a_complete_recording_continues(tmp_path: Path):
    """If a run gets more epochs than planned, the end of the schedule may move."""
    path, saved = tmp_path / "run.zarr", tmp_path / "saved.pt"
    record(path, range(24), save=saved, total_steps=24)
    record(path, range(24, 48), resume=saved, total_steps=48)
    run = open_run(path)
    assert (run.status, run.n_steps, run.spec.total_steps) == ("complete", 48, 48)
    assert run.has_final


def test_snapshots_after_the_checkpoint_are_forgotten(tmp_path: Path):
    def keep(step: int, recorder: Recorder) -> None:
        if step in {3, 11}:
            recorder.snapshot(f"at {step}")

    path, saved = tmp_path / "run.zarr", tmp_path / "saved.pt"
    record(path, range(10), save=saved, each=keep)
    assert open_run(path).snapshots == ("at 3", "at 11")
    record(path, range(10, 15), resume=saved)
    assert open_run(path).snapshots == ("at 3",)
    assert sorted(p.name for p in (path / "snapshots").iterdir()) == ["0", "zarr.json"]


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path):
    path, saved = tmp_path / "run.zarr", tmp_path / "saved.pt"
    record(path, range(10), save=saved)
    leftover = path / "signs" / "c" / "0" / "0.1234.partial"
    leftover.write_bytes(b"half a chunk")
    record(path, range(10, 12), resume=saved)
    assert not leftover.exists()


def test_a_recording_with_an_earlier_sketch_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def earlier(_n_params: int, most_bits: int) -> dict[str, int]:
        return {"sketch_bits": most_bits}  # the defaults of other fields

    whole, resumed, checkpoint = (tmp_path / name for name in ("w", "r", "c.pt"))
    with monkeypatch.context() as patch:
        patch.setattr("trajstore.recording.options.sketch_fields", earlier)
        record(whole)
        record(resumed, range(20), save=checkpoint)
    record(resumed, range(20, N_STEPS), resume=checkpoint)
    run = open_run(resumed)
    assert (run.spec.sketch_version, run.spec.bits_per_number) == (1, 1)
    assert_same_bits(run, open_run(whole))


@pytest.mark.parametrize(
    "name", ["references/start/zarr.1234.partial", "zarr.1234.partial"]
)
def test_leftovers_of_a_recording_without_steps_are_swept(name: str, tmp_path: Path):
    leftover = tmp_path / "run.zarr" / name
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half a document")
    attempt(tmp_path / "run.zarr", Training(), resume=True, step=0)
    assert not leftover.exists()


def test_nothing_is_removed_from_directories_that_hold_no_recording(tmp_path: Path):
    theirs = tmp_path / "downloads" / "set.partial"
    theirs.parent.mkdir()
    theirs.write_bytes(b"half a data set")
    with pytest.raises(FileExistsError, match=r"not a trajectory store, but holds"):
        attempt(tmp_path, Training(), resume=True, step=0)
    assert theirs.read_bytes() == b"half a data set"


@pytest.mark.parametrize("state", [True, False], ids=["state", "no-state"])
def test_a_resumption_that_ends_between_any_two_writes_leaves_right_rows(
    state: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record(tmp_path / "whole.zarr", range(30))
    expected = open_run(tmp_path / "whole.zarr")
    path, saved = tmp_path / "run.zarr", tmp_path / "saved.pt"
    record(path, range(20), save=saved)
    put, left = LocalStore.set, [0]

    async def set_(self: LocalStore, key: str, value: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("the process ends here")
        await put(self, key, value)

    monkeypatch.setattr(LocalStore, "set", set_)
    options: dict[str, Any] = {"resume": saved, "flush_rows": 3}
    options |= {} if state else {"step": 20}
    has_ended, n_writes = True, 0
    while has_ended:
        copy = tmp_path / f"{n_writes}.zarr"
        shutil.copytree(path, copy)
        left[0] = n_writes
        try:
            record(copy, range(20, 23), **options)
            has_ended = False
        except (OSError, RuntimeError):
            n_writes += 3
        run = open_run(copy)
        assert run.n_steps in {25, 20, 23}
        every = slice(0, run.n_steps)
        for name in ("epoch", "window", "signs", "probe_scales"):
            found = run.stored.rows(name, every).tobytes()
            assert found == expected.stored.rows(name, every).tobytes(), (
                name,
                n_writes,
            )
    assert n_writes > 20
