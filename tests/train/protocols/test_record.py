"""Recordings resume after an interruption, and refuse stores of other runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from tests.train.small_workloads import narrow, truncate
from train.loop import _Loop
from train.protocols import record as recording
from train.protocols.record import attrs, checkpoint_path, is_complete, record_resumably
from train.settings import Training
from train.workloads.catalogue import settings_of
from trajstore.reading.run import open_run

SMALL: dict[str, Any] = {"sketch_bits": 64, "probes": 16}


@pytest.fixture(autouse=True)
def _small_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch)
    truncate(monkeypatch, "digits-resnet", 50)


def settings(**changes: Any) -> Training:
    return replace(settings_of("digits-resnet"), batch_size=16, **changes)


class StopError(Exception):
    """Ends training in the middle."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__("stop")

    @staticmethod
    def stop(*_: object) -> None:
        raise StopError


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path):
    training = settings(epochs=2, measure_every=100, full_gradients=True)
    options = SMALL | {"updates": True, "checkpoint_seconds": 0}
    record_resumably(training, tmp_path / "whole.zarr", **options)
    step = _Loop._step

    def failing(self: Any, number: int, *args: Any) -> None:
        if number == 4:
            raise StopError
        step(self, number, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Loop, "_step", failing)
        with pytest.raises(StopError, match="stop"):
            record_resumably(training, tmp_path / "run.zarr", **options)
    assert checkpoint_path(tmp_path / "run.zarr").exists()
    assert open_run(tmp_path / "run.zarr").status == "failed"
    # Data may have moved, and devices may change.
    training = replace(training, data_dir="elsewhere", device="cpu")
    record_resumably(training, tmp_path / "run.zarr", **options)
    assert not checkpoint_path(tmp_path / "run.zarr").exists()

    ours, theirs = open_run(tmp_path / "run.zarr"), open_run(tmp_path / "whole.zarr")
    assert ours.status == "complete"
    assert ours.measurements == ("full_batch", "fixed_batches", "update")
    for name in theirs.stored.document.arrays:
        if not name.endswith("scalars"):
            found, expected = ours.stored.array(name)[:], theirs.stored.array(name)[:]
            assert found.tobytes() == expected.tobytes(), name
    for name in ("loss", "val_loss", "val_accuracy"):
        np.testing.assert_array_equal(ours.steps[name], theirs.steps[name])


def test_a_run_that_stopped_before_its_first_checkpoint_starts_over(tmp_path: Path):
    training = settings(epochs=2)
    out = tmp_path / "run.zarr"
    interrupted(training, out)
    assert out.exists()
    assert not checkpoint_path(out).exists()
    record_resumably(training, out, **SMALL)
    assert (open_run(out).status, open_run(out).n_steps) == ("complete", 6)


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path):
    training = settings(epochs=2)
    torch.save({"attrs": {}}, checkpoint_path(tmp_path / "run.zarr"))
    with pytest.raises(
        ValueError,
        match="belongs to another training run: workload None instead of 'digits-re",
    ):
        record_resumably(training, tmp_path / "run.zarr", **SMALL)


def test_checkpoints_are_no_more_frequent_than_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = settings(epochs=4)
    clock = iter([0.0, 4.0, 6.0, 6.0, 9.0])
    saved = []
    save = torch.save

    def counted(state: dict[str, Any], path: Path) -> None:
        saved.append(state["epoch"])
        save(state, path)

    monkeypatch.setattr(recording, "monotonic", lambda: next(clock))
    monkeypatch.setattr(torch, "save", counted)
    record_resumably(training, tmp_path / "a.zarr", checkpoint_seconds=5, **SMALL)
    # The first three epochs end after 4, 6 and 9 seconds; the last epoch needs no checkpoint.
    assert saved == [2]
    assert list(clock) == []


def interrupted(training: Any, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Loop, "epoch", StopError.stop)
        with pytest.raises(StopError, match="stop"):
            record_resumably(training, out, **SMALL)


def test_a_store_of_another_run_is_refused(tmp_path: Path):
    training = settings(epochs=2)
    out = tmp_path / "run.zarr"
    interrupted(training, out)
    before = open_run(out).attrs
    other = replace(training, lr=0.5, seed=3)
    with pytest.raises(
        ValueError,
        match=r"run\.zarr belongs to another training run: lr 0\.02 instead of 0\.5, seed",
    ):
        record_resumably(other, out, **SMALL)
    assert open_run(out).attrs == before


def test_a_complete_store_is_not_recorded_again(tmp_path: Path):
    training = settings(epochs=1)
    out = tmp_path / "run.zarr"
    assert not is_complete(training, out)
    interrupted(training, out)
    assert not is_complete(training, out)
    record_resumably(training, out, **SMALL)
    assert is_complete(replace(training, num_workers=3), out)
    with pytest.raises(FileExistsError, match="is complete already"):
        record_resumably(training, out, **SMALL)
    assert open_run(out).status == "complete"


def test_a_store_says_how_to_repeat_it(tmp_path: Path):
    training = settings(epochs=1, optimizer="sgd", lr=0.1)
    recording.record(training, tmp_path / "run.zarr", **SMALL)
    found = open_run(tmp_path / "run.zarr").attrs
    assert found == attrs(training)
    assert found["training"]["workload"] == "digits-resnet"
    assert found["training"]["optimizer"] == "sgd"
    assert "embedded" in found["data"]
