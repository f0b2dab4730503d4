"""Test that another process sees a run as it was when it was opened."""

import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from tests.trajstore.handmade import (
    SIZE,
    SPEC,
    change_root_of,
    random_rows,
    random_window,
    write_run,
)
from trajstore import open_run
from trajstore.reading import run as reader
from trajstore.reading.run import Run
from trajstore.store.opening import open_checked
from trajstore.store.writer import Writer


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    reader._reopened.cache_clear()
    yield
    reader._reopened.cache_clear()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.zarr"


def send(run: Run) -> Run:
    copy: Run = pickle.loads(pickle.dumps(run))
    return copy


def test_a_pickled_run_is_small(path: Path):
    spec = SPEC.to_json() | {
        "names": [f"layer{i}.weight" for i in range(500)],
        "shapes": [[3]] * 500,
    }
    writer = Writer(path, type(SPEC).from_json(spec))
    writer.commit()
    writer.close()
    assert len(pickle.dumps(open_run(path))) < 400


def test_a_process_opens_a_run_once(path: Path, monkeypatch: Any):
    write_run(path, n_steps=10)
    run, opened, whole = open_run(path), list[str](), open_checked
    together = threading.Barrier(4)

    def noting(location: str) -> Any:
        opened.append(location)
        return whole(location)

    def receive(document: bytes) -> Any:
        together.wait()
        return pickle.loads(document)

    monkeypatch.setattr(reader, "open_checked", noting)
    with ThreadPoolExecutor(4) as threads:
        copies = list(threads.map(receive, [pickle.dumps(run)] * 4))
    assert opened == [str(path)]
    assert all(copy is copies[0] for copy in copies)


def test_few_runs_stay_open(tmp_path: Path):
    paths = [tmp_path / f"{i}.zarr" for i in range(reader.REOPENED + 2)]
    for path in paths:
        write_run(path, n_steps=1)
        send(open_run(path))
    assert reader._reopened.cache_info().currsize == reader.REOPENED


def test_a_run_that_has_grown_is_cut_to_its_former_length(path: Path):
    writer = Writer(path, SPEC)
    for c in range(3):
        writer.append_window(random_window(c))
    writer.steps.append(random_rows(0, 3), [{"loss": 1.0}] * 3)
    writer.write_snapshot("early", 2, np.zeros(SIZE, np.float32).__getitem__)
    writer.commit()
    run, document = open_run(path), pickle.dumps(open_run(path))
    for c in range(3, 40):
        writer.append_window(random_window(c))
    many = {f"s{i}": 0.0 for i in range(40)}
    writer.steps.append(random_rows(3, 37), [many] * 37)
    writer.write_snapshot("late", 2, np.zeros(SIZE, np.float32).__getitem__)
    writer.write_final(np.zeros(SIZE, np.float32).__getitem__, status="complete")
    writer.commit()
    writer.close()
    copy: Run = pickle.loads(document)
    assert (copy.n_steps, copy.n_windows, copy.has_final) == (3, 3, False)
    assert (copy.status, copy.snapshots) == ("running", ("early",))
    assert copy.stored.document == run.stored.document
    xr.testing.assert_identical(copy.steps.load(), run.steps.load())
    xr.testing.assert_identical(copy.windows, run.windows)
    assert send(copy).stored.document == run.stored.document


CHANGES = {
    "another recording": (
        {"created": "2020-01-01T00:00:00+00:00"},
        "it was created at 2020-01-01T00:00:00.00:00, not 20",
    ),
    "taken up again": (
        {"resumes": [{"step": 4, "n_missing": 0}]},
        "the recording was resumed",
    ),
    "fewer scalars": ({"metrics": []}, "it has 0 scalars, but had 1"),
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES)
def test_a_store_that_was_replaced_is_refused(
    path: Path, change: dict[str, object], reason: str
):
    write_run(path, n_steps=10)
    document = pickle.dumps(open_run(path))
    change_root_of(path, lambda attributes, _arrays: attributes.update(change))
    message = rf"run\.zarr has changed since it was opened: {reason}.*Open the run"
    with pytest.raises(ValueError, match=message):
        pickle.loads(document)


def test_a_store_that_was_rewound_is_refused(path: Path, tmp_path: Path):
    write_run(path, n_steps=10)
    document = pickle.dumps(open_run(path))
    created = open_run(path).stored.document.created
    path.rename(tmp_path / "old.zarr")
    write_run(path, n_steps=7)
    change_root_of(path, lambda attributes, _: attributes.update(created=created))
    with pytest.raises(ValueError, match="it has 7 steps, but had 10"):
        pickle.loads(document)
