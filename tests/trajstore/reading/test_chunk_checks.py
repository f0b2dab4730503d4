"""Test ``trajstore.reading.chunk_checks``: open runs while their store changes."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trajstore.handmade import (
    SIZE,
    SPEC,
    random_rows,
    random_window,
    write_run,
)
from trajstore import open_run
from trajstore.format import arrays
from trajstore.format import checks as checks_module
from trajstore.reading.verify import problems, protection
from trajstore.store.writer import Writer


def append(writer: Writer, first: int, n: int, seed: int = 0) -> None:
    for c in range(first, first + n):
        writer.append_window(random_window(c))
    rows = random_rows(first, n)
    rows["tables"] = rows["tables"] + np.float32(seed)
    writer.steps.append(rows, [{"loss": float(k)} for k in range(first, first + n)])
    writer.commit()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.zarr"


def resume_at(path: Path, step: int, n: int) -> None:
    """Resume a recording, with other gradients."""
    writer = Writer(path, SPEC, resume=True)
    writer.rewind(step, snapshots=[], measured={})
    writer.commit()
    writer.note_resumption(step)
    append(writer, step, n, seed=1)
    writer.close()


def test_a_resumed_recording_is_not_mixed_with_an_open_run(path: Path):
    write_run(path, n_steps=10)
    run, sent = open_run(path), pickle.dumps(open_run(path))
    resume_at(path, 6, 4)
    message = r"was opened: the recording was resumed, .*Open the run again"
    with pytest.raises(ValueError, match=message):
        run.steps["grad_sq"].load()
    with pytest.raises(ValueError, match=message):
        pickle.loads(sent)
    assert open_run(path).steps["grad_sq"].load().notnull().all()


def test_verify_names_a_resumption_instead_of_damage(path: Path):
    write_run(path, n_steps=10)
    run = open_run(path)
    resume_at(path, 6, 4)
    with pytest.raises(ValueError, match="the recording was resumed"):
        list(problems(run))


def test_a_replaced_recording_is_not_mixed_with_an_open_run(path: Path):
    write_run(path, n_steps=10)
    run = open_run(path)
    shutil.rmtree(path)
    writer = Writer(path, SPEC)
    append(writer, 0, 12, seed=1)
    writer.close()
    with pytest.raises(ValueError, match="it was created at"):
        run.steps["grad_sq"].load()


def test_an_open_run_reads_its_rows_while_rows_are_added_and_amended(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(arrays, "MAX_CHUNK_ROWS", 4)
    writer = Writer(path, SPEC)
    append(writer, 0, 6)
    early, expected = open_run(path), open_run(path).steps.load()
    sent = pickle.dumps(early)
    append(writer, 6, 5)
    late = open_run(path)
    writer.steps.amend_last({"later": 1.0})
    writer.write_final(np.zeros(SIZE, np.float32).__getitem__, status="complete")
    writer.commit()
    writer.close()
    for run in (early, pickle.loads(sent)):
        assert run.steps.load().drop_attrs().identical(expected.drop_attrs())
    assert late.steps["loss"].values.tolist() == list(range(11))


@pytest.mark.parametrize("name", ["final", "scalars"])
def test_a_chunk_of_another_commit_is_damaged(path: Path, tmp_path: Path, name: str):
    write_run(path, n_steps=4)
    chunk = path / name / ("c/0" if name == "final" else "c/0/0")
    shutil.copy(chunk, tmp_path / "before")
    writer = Writer(path, SPEC, resume=True)
    writer.rewind(4, snapshots=[], measured={})
    append(writer, 4, 1)
    writer.write_final(np.ones(SIZE, np.float32).__getitem__, status="complete")
    writer.commit()
    writer.close()
    shutil.copy(tmp_path / "before", chunk)
    run = open_run(path)
    [problem] = problems(run)
    assert problem.text.startswith("is not the chunk that was committed there")
    rows = slice(0, run.stored.array(name).shape[0])
    with pytest.warns(UserWarning, match=f"{name}/c/0.* is not the chunk that was com"):
        values = run.stored.read(name, rows).values
    assert np.isnan(values).all()


def test_without_a_segment_of_checks_chunks_are_read_with_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(arrays, "MAX_CHUNK_ROWS", 2)
    monkeypatch.setattr(checks_module, "SEGMENT", 3)
    write_run(path, n_steps=20)
    expected = open_run(path).steps["grad_sq"].load()
    [segment] = (path / "tables/checks/0").glob("1-*")
    segment.unlink()
    run = open_run(path)
    with pytest.warns(UserWarning, match="tables/checks/0/1-.* is missing or damaged"):
        found = run.steps["grad_sq"].load()
    assert found.identical(expected)
    [problem] = problems(open_run(path))
    assert problem.place.startswith("tables/checks/0/1-")


def test_the_protection_of_a_store_is_said(path: Path):
    write_run(path, n_steps=1)
    run = open_run(path)
    assert (
        protection(run)
        == "Every chunk is compared with its check in the root document."
    )


def as_version_1(path: Path) -> None:
    """Turn a store into one of format version 1."""
    document: dict[str, Any] = json.loads((path / "zarr.json").read_text())
    for name in ("checksum", "checks"):
        del document["attributes"][name]
    document["attributes"]["format_version"] = 1
    (path / "zarr.json").write_text(json.dumps(document))


def test_a_store_of_version_1_is_read_and_continued_as_such(path: Path):
    write_run(path, n_steps=10)
    expected = open_run(path).steps["grad_sq"].load()
    as_version_1(path)
    run = open_run(path)
    assert run.steps["grad_sq"].load().identical(expected)
    assert "format version 1" in protection(run)
    resume_at(path, 6, 4)
    run = open_run(path)
    assert run.stored.document.version == 1
    assert run.n_steps == 10
    assert run.steps["grad_sq"].load()[:6].identical(expected[:6])
    assert not list(problems(run))
