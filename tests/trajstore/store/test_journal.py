"""Test that a journal returns its records, up to the first incomplete record."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trajstore.handmade import small_spec, write_run
from trajstore.cli import main as cli
from trajstore.format.layout import Layout
from trajstore.format.rows import measured_arrays
from trajstore.reading.run import open_run
from trajstore.store.journal import JOURNAL, Journal, Record, read_journal, recover
from trajstore.store.location import OutsideStoreError

SPEC = small_spec({"a": (5,), "b": (2, 3)})
SIZE = Layout(SPEC.names, SPEC.shapes).size


def record(step: int) -> Record:
    rng = np.random.default_rng(step)
    arrays: dict[str, Any] = {
        name: (100 * rng.random(shape)).astype(dtype)
        for name, (dtype, shape) in measured_arrays(SPEC, SIZE).items()
    }
    arrays["reference_sq"] = rng.random(2)
    return Record(step, (step // 4, step % 4, 0), {"loss": 0.1 * step}, arrays)


def assert_same(found: Record, expected: Record) -> None:
    assert (found.step, found.place) == (expected.step, expected.place)
    assert found.scalars == expected.scalars
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, strict=True)


def write(store: Path, *parts: range) -> list[Path]:
    journal = Journal(store)
    for part in parts:
        journal.begin(part.start)
        for step in part:
            journal.append(record(step))
    journal.close()
    return [store / JOURNAL / str(part.start) for part in parts]


def read(store: Path) -> list[Record]:
    return list(read_journal(store, SPEC, SIZE))


def test_records_read_back_in_the_order_of_steps(tmp_path: Path):
    write(tmp_path, range(98, 103), range(9, 11))
    found = read(tmp_path)
    assert [r.step for r in found] == [9, 10, *range(98, 103)]
    for r in found:
        assert_same(r, record(r.step))


def test_a_truncated_record_is_left_out(tmp_path: Path):
    [path] = write(tmp_path, range(3))
    whole = path.read_bytes()
    length = len(whole) // 3
    for end in [0, 1, length - 1, length, length + 30, 2 * length - 1, len(whole) - 1]:
        path.write_bytes(whole[:end])
        assert [r.step for r in read(tmp_path)] == list(range(end // length)), end


def test_a_record_is_written_completely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_some = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write_some(file, data[:50]))
    write(tmp_path, range(3))
    found = read(tmp_path)
    assert [r.step for r in found] == [0, 1, 2]
    for r in found:
        assert_same(r, record(r.step))


def test_a_record_that_does_not_fit_raises_and_leaves_no_part(tmp_path: Path):
    resource = pytest.importorskip("resource")
    journal, limits = Journal(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    journal.begin(0)
    journal.append(record(0))
    file = tmp_path / JOURNAL / "0"
    # The system writes the first half of the record, and then nothing more.
    half = file.stat().st_size * 3 // 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (half, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            journal.append(record(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.append(record(1))
    journal.close()
    assert [r.step for r in read(tmp_path)] == [0, 1]


@given(place=st.integers(0, 700), value=st.integers(0, 255))
def test_a_damaged_record_is_left_out_or_correct(place: int, value: int):
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        [path] = write(Path(directory), range(2))
        damaged = bytearray(path.read_bytes())
        damaged[place % len(damaged)] = value
        path.write_bytes(damaged)
        for found in read(Path(directory)):
            assert_same(found, record(found.step))


def test_files_that_are_not_a_journal_are_ignored(tmp_path: Path):
    [path] = write(tmp_path, range(2))
    (path.parent / "7").write_bytes(b"\x00" * 1000)
    (path.parent / "8").write_bytes(b'00000000 {"step": 8, "place": 3}\n')
    (path.parent / "notes.txt").write_text("mine")
    assert [r.step for r in read(tmp_path)] == [0, 1]


def test_recovery_restores_every_step_of_a_killed_recorder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    torch = pytest.importorskip("torch")
    from trajstore.recording.recorder import Recorder

    torch.manual_seed(3)
    model = torch.nn.Linear(30, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path, copy = tmp_path / "run.zarr", tmp_path / "copy.zarr"
    options: dict[str, Any] = {"sketch_bits": 64, "probes": 16, "steps_per_epoch": 5}
    with Recorder(path, model, optimizer, journal=True, **options) as recorder:
        for step in range(13):
            optimizer.zero_grad()
            model(torch.randn(8, 30)).square().mean().backward()
            recorder.log(loss=step)
            optimizer.step()
        # The copy is the store that a killed process would leave.
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns(".lock"))
    assert open_run(copy).n_steps == 10
    monkeypatch.setattr("sys.argv", ["traj-store", "info", str(copy)])
    cli.main()
    assert "may hold more steps; run traj-store recover" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["traj-store", "verify", str(copy)])
    cli.main()
    advice = f"holds 3 more steps, which are not in the store. Run\ntraj-store recover {copy}\n"
    assert advice in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["traj-store", "verify", str(copy), "--json"])
    cli.main()
    assert json.loads(capsys.readouterr().out)["steps_in_journal"] == 3
    monkeypatch.setattr("sys.argv", ["traj-store", "recover", str(copy)])
    cli.main()
    assert capsys.readouterr().out == "Recovered 3 steps; the store has 13.\n"
    found, expected = open_run(copy), open_run(path)
    assert (found.status, found.has_final) == ("interrupted", False)
    for name in (
        "epoch",
        "tables",
        "signs",
        "scales",
        "gradient_probes",
        "probe_scales",
    ):
        every = slice(0, 13)
        assert (
            found.stored.rows(name, every).tobytes()
            == expected.stored.rows(name, every).tobytes()
        )
    assert found.steps["loss"].values.tolist() == list(range(13))
    assert recover(copy) == 0
    assert not (copy / JOURNAL).exists()


def killed(path: Path, *, seed: int, steps: int, resume: Any = None) -> Any:
    """Leave the store of a killed recording with a journal at `path`; return a state."""
    torch = pytest.importorskip("torch")
    from trajstore.recording.recorder import Recorder

    torch.manual_seed(seed)
    model = torch.nn.Linear(30, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options: dict[str, Any] = {"sketch_bits": 64, "probes": 16, "flush_rows": 5}
    live = path.with_suffix(".live")
    if resume is not None:
        options["resume"] = resume
        shutil.copytree(path, live, ignore=shutil.ignore_patterns(".lock", ".writer"))
        shutil.rmtree(path)
    with Recorder(live, model, optimizer, journal=True, **options) as recorder:
        state = recorder.state_dict()
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 30)).square().mean().backward()
            optimizer.step()
            if step == 4:
                recorder.flush()
        shutil.copytree(live, path, ignore=shutil.ignore_patterns(".lock", ".writer"))
    shutil.rmtree(live)
    return state


@pytest.mark.filterwarnings("ignore:The parameters are not")
@pytest.mark.parametrize("other", ["another recording", "before a resumption"])
@pytest.mark.parametrize("how", ["recover", "resume"])
def test_a_journal_of_another_recording_is_refused(
    how: str, other: str, tmp_path: Path
):
    ours, theirs = tmp_path / "ours.zarr", tmp_path / "theirs.zarr"
    state = killed(ours, seed=1, steps=7)
    if other == "another recording":
        killed(theirs, seed=2, steps=8)
    else:
        shutil.copytree(ours, theirs)
        killed(ours, seed=2, steps=6, resume=state)
    steps = open_run(ours).n_steps
    assert steps >= 5
    shutil.rmtree(ours / JOURNAL)
    shutil.copytree(theirs / JOURNAL, ours / JOURNAL)
    before = contents(ours)
    replay: Any = {"recover": recover, "resume": partial(resume_at, step=steps)}[how]
    with pytest.raises(ValueError, match="is the journal of another recording: its"):
        replay(ours)
    assert {n: b for n, b in contents(ours).items() if ".lock" not in n} == before


def resume_at(path: Path, step: int) -> None:
    import torch

    from trajstore.recording.recorder import Recorder

    model = torch.nn.Linear(30, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options: dict[str, Any] = {"sketch_bits": 64, "probes": 16, "flush_rows": 5}
    Recorder(path, model, optimizer, resume=True, step=step, **options).close()


def test_a_journal_of_an_earlier_version_names_no_recording(tmp_path: Path):
    path = tmp_path / "run.zarr"
    killed(path, seed=1, steps=7)
    for file in (path / JOURNAL).iterdir():
        rewritten = [
            r._replace(recording="")
            for r in read_journal(path, *spec_and_size(path))
            if r.step >= int(file.name)
        ]
        journal = Journal(path)
        journal.begin(int(file.name))
        for r in rewritten:
            journal.append(r)
        journal.close()
    assert recover(path) == 2
    assert open_run(path).n_steps == 7


def spec_and_size(path: Path) -> tuple[Any, int]:
    run = open_run(path)
    return run.spec, run.layout.size


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("name", [".journal", ".journal/0", ".lock", ".writer"])
def test_recovery_touches_nothing_outside_the_store(
    name: str, kind: str, tmp_path: Path
):
    store, outside = tmp_path / "run.zarr", tmp_path / "outside"
    write_run(store, n_steps=3, status=None)
    write(store, range(3, 5))
    place = store / name
    if place.exists():
        shutil.move(place, outside)
    else:
        outside.write_bytes(b"theirs")
    if kind == "link":
        place.symlink_to(outside)
    else:
        os.mkfifo(place)
    before = contents(tmp_path)
    with pytest.raises(OutsideStoreError, match=f"{name} (leads through a|is not a)"):
        recover(store)
    assert contents(tmp_path) == before


def contents(directory: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in directory.rglob("*") if f.is_file()}
