"""The indices of a batch's examples are kept like the rest of the row of a step."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from tests.trajstore.handmade import SPEC, change_root_of, random_rows, random_window
from tests.trajstore.store.test_chunks import flip_a_bit, remove
from trajstore import open_run
from trajstore.reading.verify import problems
from trajstore.store.journal import recover
from trajstore.store.writer import Writer

torch = pytest.importorskip("torch")

from torch import nn

from trajstore.recording.recorder import Recorder

MOST, SPE = 4, 3
SMALL: dict[str, Any] = {"sketch_bits": 64, "probes": 16, "steps_per_epoch": SPE}

LOGGED: list[Any] = [
    [3, 1, 2, 0],
    torch.tensor([7, 8]),
    None,
    np.array([5, 6, 9], np.uint8),
    range(4),
    [],
    torch.tensor([1 << 40], dtype=torch.int64),
]
EXPECTED = [
    [3, 1, 2, 0],
    [7, 8, -1, -1],
    [-1, -1, -1, -1],
    [5, 6, 9, -1],
    [0, 1, 2, 3],
    [-1, -1, -1, -1],
    [1 << 40, -1, -1, -1],
]


def new_recorder(path: Path, **options: Any) -> tuple[Recorder, Callable[[], None]]:
    """Return a recorder, and a function that takes a step."""
    model = nn.Linear(3, 1)
    nn.init.ones_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(path, model, optimizer, **(SMALL | options))

    def step() -> None:
        optimizer.zero_grad()
        # The gradient is zero, so the parameters of all checkpoints are the same.
        (0 * model(torch.ones(1, 3))).sum().backward()
        optimizer.step()

    return recorder, step


def record(path: Path, logged: list[Any] = LOGGED, **options: Any) -> None:
    recorder, step = new_recorder(path, **({"samples": MOST} | options))
    with recorder:
        for indices in logged:
            if indices is not None:
                recorder.log_samples(indices)
            step()


@pytest.mark.parametrize("options", [{}, {"flush_rows": 1}, {"exact": True}], ids=str)
def test_logged_samples_are_read_back(tmp_path: Path, options: dict[str, Any]):
    record(tmp_path / "run.zarr", **options)
    run = open_run(tmp_path / "run.zarr")
    assert run.samples.dims == ("step", "sample")
    assert run.samples.dtype == np.int64
    np.testing.assert_array_equal(run.samples, EXPECTED)
    np.testing.assert_array_equal(run.samples["epoch"], np.arange(7) // SPE)
    np.testing.assert_array_equal(run.samples.sel(epoch=1), EXPECTED[3:6])
    assert list(problems(run)) == []


def test_samples_are_read_where_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record(tmp_path / "run.zarr")
    samples = open_run(tmp_path / "run.zarr").samples
    (tmp_path / "run.zarr/samples/c/0/0").unlink()
    with pytest.warns(UserWarning, match="samples/c/0/0 is missing"):
        assert (samples.values == -1).all()


def test_the_last_call_wins_and_what_was_logged_is_copied(tmp_path: Path):
    recorder, step = new_recorder(tmp_path / "run.zarr", samples=2)
    indices = np.array([4, 5])
    with recorder:
        recorder.log_samples([1, 2])
        recorder.log_samples(indices)
        indices[:] = 0
        step()
        # A batch whose step was never taken does not belong to the last row.
        recorder.log_samples([8])
    np.testing.assert_array_equal(open_run(tmp_path / "run.zarr").samples, [[4, 5]])


WRONG: dict[str, tuple[int, Any, type[Exception], str]] = {
    "too many": (
        2,
        [1, 2, 3],
        ValueError,
        r"indices of 3 examples, but the recorder keeps at most 2 .*samples=3\)",
    ),
    "none kept": (0, [1], ValueError, r"keeps no indices .*samples=batch_size\)"),
    "none kept of none": (0, [], ValueError, r"keeps no indices"),
    "negative": (2, torch.tensor([3, -1]), ValueError, "non-negative .*, got -1"),
    "fractions": (
        2,
        torch.tensor([0.5]),
        TypeError,
        "integers, .* got values of float32",
    ),
    "masks": (2, [True, False], TypeError, "integers, .* got values of bool"),
    "a table": (4, [[1], [2]], ValueError, r"list of indices .*shape \(2, 1\)"),
    "one number": (4, 3, ValueError, r"list of indices .*shape \(\)"),
}


@pytest.mark.parametrize(
    ("most", "indices", "error", "text"), WRONG.values(), ids=WRONG
)
def test_anything_but_a_list_of_indices_is_refused(
    tmp_path: Path, most: int, indices: Any, error: type[Exception], text: str
):
    recorder, _ = new_recorder(tmp_path / "run.zarr", samples=most)
    with recorder, pytest.raises(error, match=text):
        recorder.log_samples(indices)


def test_a_run_without_samples_says_how_to_record_them(tmp_path: Path):
    record(tmp_path / "run.zarr", [None] * 3, samples=0)
    run = open_run(tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr/samples").exists()
    with pytest.raises(
        ValueError,
        match=r"record with Recorder\(..., samples=batch_size\) and "
        r"recorder.log_samples\(indices\)\.$",
    ):
        _ = run.samples


def test_stores_older_than_samples_can_be_opened(tmp_path: Path):
    record(tmp_path / "run.zarr", [None] * 3, samples=0)
    change_root_of(tmp_path / "run.zarr", lambda a, _: a["spec"].pop("samples"))
    run = open_run(tmp_path / "run.zarr")
    assert (run.n_steps, run.spec.samples) == (3, 0)
    assert list(problems(run)) == []


def test_measurements_have_none(tmp_path: Path):
    recorder, step = new_recorder(tmp_path / "run.zarr", samples=2)
    with recorder:
        step()
        recorder.log_samples([3, 4])
        recorder.measure("other")
        step()
    run = open_run(tmp_path / "run.zarr")
    np.testing.assert_array_equal(run.samples[1], [3, 4])
    assert "measurements/0/samples" not in run.stored.document.arrays
    with pytest.raises(ValueError, match=r"'other' of .* has no indices of examples"):
        _ = run.measured("other").samples
    assert list(problems(run)) == []


def test_an_interrupted_recording_loses_no_samples(tmp_path: Path):
    whole, path = tmp_path / "whole.zarr", tmp_path / "run.zarr"
    record(whole, flush_rows=2)
    recorder, step = new_recorder(path, samples=MOST)
    for indices in LOGGED[:4]:
        if indices is not None:
            recorder.log_samples(indices)
        step()
    # Indices logged before the checkpoint belong to the step after it.
    recorder.log_samples(LOGGED[4])
    state = recorder.state_dict()
    # The checkpoint does not contain the steps after it.
    step()
    recorder.log_samples([2, 2])
    step()
    recorder.close()
    recorder, step = new_recorder(path, samples=MOST, resume=state)
    with recorder:
        step()
        for indices in LOGGED[5:]:
            recorder.log_samples(indices)
            step()
    assert open_run(path).samples.identical(open_run(whole).samples)


def test_steps_that_were_lost_have_no_samples(tmp_path: Path):
    path = tmp_path / "run.zarr"
    record(path, LOGGED[:2])
    recorder, step = new_recorder(path, samples=MOST, resume=True, step=4)
    with recorder:
        recorder.log_samples([9])
        step()
    rows = [*EXPECTED[:2], [-1] * MOST, [-1] * MOST, [9, -1, -1, -1]]
    np.testing.assert_array_equal(open_run(path).samples, rows)


def test_other_numbers_of_samples_are_another_recording(tmp_path: Path):
    record(tmp_path / "run.zarr", LOGGED[:2])
    with pytest.raises(ValueError, match="samples: 5, recorded with 4"):
        new_recorder(tmp_path / "run.zarr", samples=5, resume=True, step=2)


def test_a_journal_keeps_samples(tmp_path: Path):
    path, copy = tmp_path / "run.zarr", tmp_path / "copy.zarr"
    recorder, step = new_recorder(path, samples=MOST, journal=True)
    with recorder:
        for indices in LOGGED:
            if indices is not None:
                recorder.log_samples(indices)
            step()
        # Leave the store as a killed process would leave it.
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns(".lock"))
    n_stored = open_run(copy).n_steps
    assert recover(copy) == len(LOGGED) - n_stored > 0
    np.testing.assert_array_equal(open_run(copy).samples, EXPECTED)


@pytest.mark.parametrize("damage", [remove, flip_a_bit])
def test_samples_of_a_damaged_chunk_are_not_known(
    tmp_path: Path, damage: Callable[[Path], None]
):
    path = tmp_path / "run.zarr"
    record(path)
    damage(path / "samples/c/0/0")
    run = open_run(path)
    with pytest.warns(UserWarning, match="samples/c/0/0"):
        np.testing.assert_array_equal(run.samples, np.full((7, MOST), -1))
    [problem] = problems(run)
    assert problem.place == "samples/c/0/0"
    assert problem.cost.startswith("samples of steps 0-6 (")


def test_numbers_that_are_not_indices_are_found(tmp_path: Path):
    spec = replace(SPEC, samples=2)
    writer = Writer(tmp_path / "run.zarr", spec)
    for c in range(3):
        writer.append_window(random_window(c, spec))
    rows = random_rows(0, 3, spec)
    rows["samples"][1] = [4, -7]
    writer.steps.append(rows, [{}] * 3)
    writer.commit()
    writer.close()
    [problem] = problems(open_run(tmp_path / "run.zarr"))
    assert problem.place == "samples/c/0/0"
    assert problem.text == "holds -7, which is not the index of an example"


def test_hostile_numbers_of_samples_are_refused(tmp_path: Path):
    record(tmp_path / "run.zarr")
    change_root_of(
        tmp_path / "run.zarr", lambda a, _: a["spec"].update(samples=1 << 60)
    )
    with pytest.raises(ValueError, match=r"samples: expected at most \d+, got"):
        open_run(tmp_path / "run.zarr")


def test_a_run_sent_to_another_process_has_its_samples(tmp_path: Path):
    import pickle

    record(tmp_path / "run.zarr")
    run = open_run(tmp_path / "run.zarr")
    again = pickle.loads(pickle.dumps(run))
    xr.testing.assert_identical(again.samples, run.samples)
