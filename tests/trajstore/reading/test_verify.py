"""Test that `traj-store verify` finds every kind of damage, and names its place."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trajstore.handmade import (
    EXACT,
    SIZE,
    SPEC,
    random_rows,
    random_window,
    write_run,
)
from tests.trajstore.store.test_chunks import flip_a_bit, pack_a_bomb, remove
from trajstore import open_run
from trajstore.cli import main as cli
from trajstore.format.run_spec import RunSpec
from trajstore.reading.verify import Problem, all_chunks, problems
from trajstore.store.writer import Writer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of an intact run of 70 windows of one step, not to be changed."""
    path = tmp_path_factory.mktemp("whole") / "run.zarr"
    writer = Writer(path, SPEC)
    for c in range(70):
        writer.append_window(random_window(c))
    writer.steps.append(random_rows(0, 70), [{"loss": 1.0}] * 70)
    writer.write_snapshot("warm", 3, np.ones(SIZE, np.float32).__getitem__)
    writer.write_final(np.zeros(SIZE, np.float32).__getitem__, status="complete")
    writer.commit()
    writer.close()
    return path


@pytest.fixture
def path(tmp_path: Path, whole: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run.zarr"))


def found(path: Path) -> list[Problem]:
    return list(problems(open_run(path)))


def test_an_intact_run_has_no_problem(whole: Path):
    assert found(whole) == []


@pytest.mark.parametrize("status", [None, "failed", "complete"])
@pytest.mark.parametrize(
    "spec",
    [SPEC, EXACT, replace(SPEC, basis=0)],
    ids=["sketched", "exact", "without a basis"],
)
@pytest.mark.parametrize("n_steps", [0, 3])
def test_runs_of_all_kinds_have_no_problem(
    tmp_path: Path, status: str | None, spec: RunSpec, n_steps: int
):
    write_run(tmp_path / "a.zarr", n_steps=n_steps, status=status, spec=spec)
    assert found(tmp_path / "a.zarr") == []


def test_every_chunk_is_checked(whole: Path):
    seen = list[Any]()

    def noting(places: Any) -> Iterator[Any]:
        for place in places:
            seen.append(place)
            yield place

    run = open_run(whole)
    assert list(problems(run, track=noting)) == []
    assert seen == all_chunks(run)
    files = [f for f in whole.rglob("*") if f.is_file() and "/c/" in str(f)]
    assert len(seen) == len(files)


CHUNKS = {
    "rows": (
        "tables/c/0/0/0",
        "tables of steps 0-69 (norms of layers, and all results)",
    ),
    "epochs": ("epoch/c/0", "epoch of steps 0-69 (nothing, if other arrays tell it)"),
    "probes": (
        "displacement_probes/c/0/0",
        "displacement_probes of steps 0-69 (distance, gamma, RSI and EB)",
    ),
    "starts": ("references/start/c/0", "nothing, if the array 'window' is intact"),
    "weights": ("references/weights/c/0/0", "references/weights of windows 0-69"),
    "codes": ("references/codes/c/40/0", "steps 40-64"),
    "last codes": ("references/codes/c/69/0", "steps 69"),
    "scales": ("references/scales/c/0/0", "steps 0-69"),
    "keyframe": ("references/keyframes/c/1/0", "steps 32-64"),
    "final": ("final/c/0", "analyses with the target final"),
    "snapshot": ("snapshots/0/c/0", "analyses with the target snapshots/0"),
}
KINDS = {
    "missing": (remove, "is missing"),
    "flipped": (flip_a_bit, "is damaged: Stored and computed checksum do not match"),
    "bomb": (pack_a_bomb, ""),
}


@pytest.mark.parametrize(("damage", "text"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("key", "cost"), CHUNKS.values(), ids=CHUNKS)
def test_a_damaged_chunk_is_named_with_what_it_costs(
    path: Path, key: str, cost: str, damage: Callable[[Path], None], text: str
):
    damage(path / key)
    [problem] = found(path)
    assert (problem.place, problem.cost) == (key, cost)
    assert problem.text.startswith(text)


def test_all_damage_is_found_together(path: Path):
    keys = sorted(key for key, _ in CHUNKS.values())
    for key in keys:
        remove(path / key)
    assert sorted(problem.place for problem in found(path)) == keys


def edit_document(path: Path, **values: Any) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | values))


DOCUMENTS = {
    "missing": (remove, "does not agree with the root document: missing"),
    "no JSON": (lambda p: p.write_text("{"), "is truncated or damaged"),
    "list": (lambda p: p.write_text("[]"), "does not agree with the root document: mi"),
    "type": (
        lambda p: edit_document(p, data_type="float64"),
        "does not agree with the root document: data_type: expected 'float32', got 'flo",
    ),
    "shape": (
        lambda p: edit_document(p, shape=[80, 2, 14]),
        "does not agree with the root document: shape: expected [70, 2, 12], got [80,",
    ),
}


@pytest.mark.parametrize(("edit", "text"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_an_arrays_own_metadata_are_compared(
    path: Path, edit: Callable[[Path], None], text: str
):
    edit(path / "tables/zarr.json")
    [problem] = found(path)
    assert problem.place == "tables/zarr.json"
    assert problem.text.startswith(text)


def test_arrays_of_an_open_run_may_be_ahead_of_the_root_document(tmp_path: Path):
    path = tmp_path / "run.zarr"
    write_run(path, n_steps=3, status=None)
    edit_document(path / "scalars/zarr.json", shape=[5, 64])
    assert found(path) == []
    edit_document(path / "scalars/zarr.json", shape=[3])
    [problem] = found(path)
    assert problem.text.endswith("shape: expected [3, 32], got [3]")


def test_a_killed_resumption_leaves_metadata_behind_the_root_document(tmp_path: Path):
    """The root document still describes the complete run; the writer's document is left."""
    path = tmp_path / "run.zarr"
    write_run(path, n_steps=3)
    edit_document(path / "scalars/zarr.json", shape=[2, 32])
    edit_document(path / "epoch/zarr.json", shape=[2])
    assert len(found(path)) == 2
    (path / ".writer").write_text("{}")
    assert found(path) == []
    edit_document(path / "tables/zarr.json", shape=[2, 3, 12])
    [problem] = found(path)
    assert problem.text.endswith("shape: expected [3, 2, 12], got [2, 3, 12]")


def test_damaged_metadata_of_a_group_are_reported(path: Path):
    edit_document(path / "references/zarr.json", node_type="array")
    [problem] = found(path)
    assert problem.place == "references/zarr.json"
    assert "node_type: expected 'group', got 'array'" in problem.text


def write_wrong(path: Path, name: str, values: list[int]) -> None:
    """Write a run of six steps in which one array holds wrong numbers."""
    writer = Writer(path, SPEC)
    for c in range(6):
        start = values[c] if name == "references/start" else c
        writer.append_window(random_window(c)._replace(start=start))
    rows = random_rows(0, 6)
    if name in rows:
        rows[name] = np.array(values, "i4")
    writer.steps.append(rows, [{}] * 6)
    writer.commit()
    writer.close()


NUMBERS = {
    "epochs go back": (
        ("epoch", [0, 0, 0, 0, 1, 0]),
        "epoch, iteration",
        "are not consecutive at steps 5: step 5 is iteration 1 of epoch 0, after it",
    ),
    "a step is left out": (
        ("iteration", [0, 1, 3, 4, 0, 1]),
        "epoch, iteration",
        "are not consecutive at steps 2: step 2 is iteration 3 of epoch 0, after it",
    ),
    "the first step is not the first": (
        ("iteration", [1, 2, 3, 4, 0, 1]),
        "epoch, iteration",
        "are not consecutive at steps 0: step 0 is iteration 1 of epoch 0, after",
    ),
    "windows": (
        ("window", [0, 1, 2, 2, 2, 5]),
        "window",
        "does not agree with references/start at steps 3-4: step 3 is in window 2",
    ),
    "starts": (
        ("references/start", [0, 1, 2, 1, 4, 5]),
        "references/start",
        "does not grow from 0: [0 1 2 1 4 5]",
    ),
}


@pytest.mark.parametrize(("wrong", "place", "text"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_that_do_not_agree_are_located(
    tmp_path: Path, wrong: tuple[str, list[int]], place: str, text: str
):
    write_wrong(tmp_path / "run.zarr", *wrong)
    [problem] = found(tmp_path / "run.zarr")
    assert problem.place == place
    assert problem.text.startswith(text)


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("step", [2, 1, 3], "does not grow from 0 to at most 6: [2 1 3]"),
        ("step", [5, 6, 7], "does not grow from 0 to at most 6: [5 6 7]"),
        ("window", [0, 1, 6], "does not grow from 0 to at most 5: [0 1 6]"),
        ("window", [-1, 1, 2], "does not grow from 0 to at most 5: [-1  1  2]"),
    ],
)
def test_measurements_out_of_place_are_named(
    tmp_path: Path, name: str, values: list[int], text: str
):
    writer = Writer(tmp_path / "run.zarr", SPEC)
    for c in range(6):
        writer.append_window(random_window(c))
    writer.steps.append(random_rows(0, 6), [{}] * 6)
    rows = random_rows(0, 3) | {"step": np.arange(3)}
    rows[name] = np.array(values, rows[name].dtype)
    writer.measurement("other").append(rows, [{}] * 3)
    writer.commit()
    writer.close()
    [problem] = found(tmp_path / "run.zarr")
    assert problem.place == f"measurements/0/{name}"
    assert problem.text == text
    assert problem.cost == "the measurement 'other'"


@pytest.mark.parametrize(
    ("field", "place"),
    [
        ("keyframe", "references/keyframes/c/0/0"),
        ("scales", "references/scales/c/0/0"),
    ],
)
def test_anchors_that_are_not_finite_are_named(tmp_path: Path, field: str, place: str):
    writer = Writer(tmp_path / "run.zarr", SPEC)
    window = random_window(0)
    getattr(window, field)[1] = np.inf
    writer.append_window(window)
    writer.steps.append(random_rows(0, 1), [{}])
    writer.commit()
    writer.close()
    [problem] = found(tmp_path / "run.zarr")
    assert (problem.place, problem.cost) == (place, "steps 0")
    assert problem.text.startswith("holds numbers that are not finite")


# The command

COMPARED = "Every chunk is compared with its check in the root document."


def verify(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["traj-store", "verify", str(path)])
    cli.main()


def test_the_command_reports_no_problem(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    verify(whole, monkeypatch)
    text = f"No problem in 90 chunks, 70 steps. {COMPARED}\n"
    assert capsys.readouterr().out == text


def test_the_command_lists_problems_and_fails(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    remove(path / "references/codes/c/40/0")
    remove(path / "final/c/0")
    with pytest.raises(SystemExit, match=r"^1$"):
        verify(path, monkeypatch)
    assert capsys.readouterr().out.splitlines() == [
        "references/codes/c/40/0 is missing; lost: steps 40-64",
        "final/c/0 is missing; lost: analyses with the target final",
        f"2 problems in 90 chunks, 70 steps. {COMPARED}",
    ]


def test_one_problem_is_no_plural(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    remove(path / "final/c/0")
    with pytest.raises(SystemExit, match=r"^1$"):
        verify(path, monkeypatch)
    assert "\n1 problem in 90 chunks" in capsys.readouterr().out


def test_the_command_fails_on_anything_but_a_store(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (path / "zarr.json").write_text("{")
    with pytest.raises(SystemExit, match=r"^1$"):
        verify(path, monkeypatch)
    assert "truncated or damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", [".journal", ".lock", ".writer"])
def test_a_linked_file_of_the_writer_is_reported(name: str, path: Path, tmp_path: Path):
    (path / name).symlink_to(tmp_path)
    [problem] = found(path)
    assert (problem.place, problem.text) == (name, "leads through a link")
    assert "recover" in problem.cost
