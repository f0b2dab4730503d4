"""Options of a recorder."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzers import path_geometry, store_geometry
from trajstore.reading.run import open_run
from trajstore.reading.verify import problems
from trajstore.store.journal import recover

torch = pytest.importorskip("torch")


from tests.trajstore.recording.regression import (
    SMALL,
    count_hooks,
    record,
    regression,
    take_step,
)
from trajstore.recording.recorder import Recorder

OUT_OF_RANGE: list[tuple[str, Any, str]] = [
    ("sketch_bits", 1000, r"sketch_bits: expected a power of two .*, got 1000"),
    ("sketch_bits", 4, r"sketch_bits: expected a power of two from 8 .*, got 4"),
    ("sketch_bits", 64.0, r"sketch_bits: expected a power of two .*, got 64.0"),
    ("probes", 100, r"probes: expected a power of two .*, got 100"),
    ("basis", -1, r"basis: expected an integer of at least 0, got -1"),
    ("basis", 2.5, r"basis: expected an integer of at least 0, got 2.5"),
    ("seed", -1, r"seed: expected an integer from 0 .*, got -1"),
    ("seed", 1 << 64, r"seed: expected an integer from 0 .*, got 18446744073709551616"),
    ("exact", 1, r"exact: expected true or false, got 1"),
    ("steps_per_epoch", 0, r"steps_per_epoch: expected an integer of at least 1"),
    ("reference_every", 0, r"reference_every: expected an integer of at least 1"),
    ("total_steps", -3, r"total_steps: expected an integer of at least 1.*got -3"),
    ("flush_rows", 0, r"`flush_rows` must be at least 1 and .*, got 0"),
]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    OUT_OF_RANGE,
    ids=[f"{option}={value}" for option, value, _ in OUT_OF_RANGE],
)
def test_options_out_of_range(option: str, value: Any, message: str, tmp_path: Path):
    training = regression()
    with pytest.raises(ValueError, match=message):
        Recorder(
            tmp_path / "run",
            training.model,
            training.optimizer,
            **{option: value},
        )
    assert not (tmp_path / "run").exists()
    assert count_hooks(training.optimizer) == 0


def test_all_options_out_of_range_are_listed(tmp_path: Path):
    training = regression()
    with pytest.raises(ValueError, match=r"(?s)seed: .*basis: "):
        Recorder(
            tmp_path / "run", training.model, training.optimizer, seed=-1, basis=-1
        )


def test_numbers_of_steps_may_be_numpy_integers(tmp_path: Path):
    record(tmp_path / "run", regression(), 2, steps_per_epoch=np.int64(2), **SMALL)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_an_existing_path_is_never_overwritten(kind: str, tmp_path: Path):
    path = tmp_path / "run"
    path.mkdir() if kind == "directory" else path.write_text("precious")
    training = regression()
    with pytest.raises(FileExistsError, match=r"run exists already.* choose a new"):
        Recorder(path, training.model, training.optimizer, **SMALL)
    assert count_hooks(training.optimizer) == 0
    assert path.is_dir() or path.read_text() == "precious"


def test_directories_above_the_store_are_made(tmp_path: Path):
    path = tmp_path / "some" / "where" / "run"
    training = regression()
    Recorder(str(path), training.model, training.optimizer, **SMALL).close()
    assert open_run(path).status == "complete"


@pytest.mark.parametrize("name", ["steps_per_epoch", "total_steps", "step"])
def test_numbers_of_steps_are_integers(name: str, tmp_path: Path):
    training = regression()
    options: dict[str, Any] = {name: 28.0}
    with pytest.raises(TypeError, match=f"`{name}` must be an integer, got 28.0"):
        Recorder(tmp_path / "run", training.model, training.optimizer, **options)


def test_the_working_directory_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training, path = regression(), Path("run.zarr")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    options = {**SMALL, "flush_rows": 2, "journal": True}
    with Recorder(path, training.model, training.optimizer, **options) as recorder:
        monkeypatch.chdir("other")
        for step in range(5):
            take_step(training, step)
        state = recorder.state_dict()
    monkeypatch.chdir(tmp_path)
    run = open_run("run.zarr")
    monkeypatch.chdir("other")
    assert run.location == str(tmp_path / "run.zarr")
    assert np.isfinite(run.steps["grad_norm"].values).all()
    assert list(Path().iterdir()) == []
    path = Path("../run.zarr")
    Recorder(path, training.model, training.optimizer, resume=state, **options).close()


def test_everything_at_a_relative_path_works_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Snapshots, measurements, updates, results and targets are at the path as it was."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("first.zarr", "second.zarr"):
        training, options = regression(), {**SMALL, "updates": True}
        with Recorder(name, training.model, training.optimizer, **options) as recorder:
            for step in range(4):
                monkeypatch.chdir(tmp_path / "other" if step % 2 else tmp_path)
                take_step(training, step)
                recorder.measure("here")
                recorder.snapshot(f"after {step}")
        monkeypatch.chdir(tmp_path)
    run = open_run("first.zarr")
    stored = store_geometry(run, reference="after 1")
    lazy = path_geometry(run, reference="second.zarr")
    measured = run.measured("here").steps.grad_norm
    monkeypatch.chdir("other")
    for values in (stored.distance, lazy.gamma, measured, run.steps.grad_norm):
        assert np.isfinite(values.values).all()
    assert list(problems(run, track=iter)) == []
    assert list(Path().iterdir()) == []
    assert {p.name for p in tmp_path.iterdir()} == {
        *("first.zarr", "second.zarr", "first.analysis.zarr", "other"),
    }


def test_a_relative_journal_is_recovered_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    training, options = regression(), {**SMALL, "journal": True}
    recorder = Recorder("run.zarr", training.model, training.optimizer, **options)
    for step in range(3):
        take_step(training, step)
    shutil.copytree("run.zarr", "copy.zarr", ignore=shutil.ignore_patterns(".lock"))
    monkeypatch.chdir("other")
    assert recover("../copy.zarr") == 3
    assert open_run("../copy.zarr").n_steps == 3
    recorder.close()
