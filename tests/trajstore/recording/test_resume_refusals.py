"""Recordings that are not resumed, and stores that a refusal leaves unchanged."""

import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajstore.format.run_spec import SchemaError

torch = pytest.importorskip("torch")


from tests.trajstore.recording.resumable import (
    SMALL,
    Training,
    attempt,
    record,
)
from tests.trajstore.store.test_chunks import flip_a_bit
from trajstore.recording.recorder import Recorder


@pytest.mark.parametrize(
    ("training", "options", "difference"),
    [
        (
            lambda: Training(width=31),
            {},
            r"(?s)different run.*0\.bias: shape \(31,\), recorded with \(30,\)",
        ),
        (Training, {"sketch_bits": 128}, "sketch_bits: 128, recorded with 64"),
        (Training, {"steps_per_epoch": 7}, "steps_per_epoch: 7, recorded with 6"),
        (
            Training,
            {"basis": 0},
            r"(?s)basis: 0, recorded with 3.*Resume with the model",
        ),
        (Training, {"seed": 1, "basis": 2}, r"(?s)basis: 2.*seed: 1, recorded with 0"),
    ],
)
def test_a_changed_model_or_recorder_is_refused(
    training: Callable[[], Training],
    options: dict[str, Any],
    difference: str,
    tmp_path: Path,
):
    path, saved = tmp_path / "run.zarr", tmp_path / "saved.pt"
    record(path, range(10), save=saved)
    before = (path / "zarr.json").read_bytes()
    with pytest.raises(SchemaError, match=difference):
        attempt(path, training(), resume=True, step=10, **options)
    assert (path / "zarr.json").read_bytes() == before


def test_a_changed_optimizer_is_refused(tmp_path: Path):
    path, saved = tmp_path / "run.zarr", tmp_path / "saved.pt"
    record(path, range(10), save=saved)
    state = torch.load(saved, weights_only=True)["recorder"]
    with pytest.raises(SchemaError, match="parameter groups: 2, recorded with 1"):
        attempt(path, Training(groups=2), resume=state)


def test_the_state_of_another_recording_is_refused(tmp_path: Path):
    path, saved = tmp_path / "run.zarr", tmp_path / "saved.pt"
    record(path, range(10), save=saved)
    other = tmp_path / "other.zarr"
    record(other, range(10))
    state = torch.load(saved, weights_only=True)["recorder"]
    with pytest.raises(SchemaError, match=r"other\.zarr is a recording that began at"):
        attempt(other, Training(), resume=state)
    with pytest.raises(FileNotFoundError, match=r"nothing at .*gone\.zarr"):
        attempt(tmp_path / "gone.zarr", Training(), resume=state)
    assert not (tmp_path / "gone.zarr").exists()


def test_parameters_of_another_step_are_warned_of(tmp_path: Path):
    path, saved = tmp_path / "run.zarr", tmp_path / "saved.pt"
    record(path, range(40), save=saved)
    state = torch.load(saved, weights_only=True)
    with pytest.warns(UserWarning, match="not the result of step 39.*checkpoint"):
        attempt(path, Training(), resume=state["recorder"])
    right = Training()
    right.restore(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attempt(path, right, resume=state["recorder"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"resume": True}, "needs `step`"),
        ({"resume": True, "step": -1}, "needs `step`.*got -1"),
        ({"step": 3}, "`step` = 3 needs `resume=True`"),
        ({"resume": {"model": 1}}, r"got \['model'\]"),
    ],
)
def test_runs_that_cannot_be_resumed_are_refused(
    options: dict[str, Any], problem: str, tmp_path: Path
):
    with pytest.raises(ValueError, match=problem):
        attempt(tmp_path / "run.zarr", Training(), **options)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A store with rows, a measurement and a snapshot after a checkpoint, and the checkpoint."""
    directory = tmp_path_factory.mktemp("interrupted")
    path, saved = directory / "run.zarr", directory / "saved.pt"

    def each(step: int, recorder: Recorder) -> None:
        if step > 0:
            recorder.measure("other")
        if step in {5, 21}:
            recorder.snapshot(f"at {step}")

    record(path, range(20), save=saved, each=each, samples=2)
    return path, torch.load(saved, weights_only=True)


MALFORMED: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "text for step": (("position", "step"), "20", "step: expected an integer.*'20'"),
    "negative step": (("position", "step"), -1, "step: expected an integer.* found -1"),
    "fraction": (
        ("position", "step"),
        19.5,
        r"step: expected an integer.* found 19\.5",
    ),
    "truth": (("position", "step"), True, "step: expected an integer.*found True"),
    "huge step": (("position", "step"), 1 << 70, "step: expected an integer"),
    "tensor": (("position", "step"), torch.tensor(20), "found tensor"),
    "missing step": (("position", "step"), ..., "step: expected.* found nothing"),
    "negative epoch": (("position", "epoch"), -1, "epoch: expected an integer"),
    "late epoch": (("position", "epoch_start"), 21, "expected from 0 to 20, found 21"),
    "negative time": (("position", "wall_time"), -1.0, "wall_time: expected from 0"),
    "infinite time": (("position", "wall_time"), np.inf, "wall_time: expected from 0"),
    "unknown": (("position", "stop"), 3, "position.stop: unknown"),
    "no position": (("position",), [20], r"position: expected .* found \[20\]"),
    "pending": (("position", "pending"), {"a": "1"}, "pending: expected numbers by"),
    "samples": (("position", "samples"), [-1], "samples: expected a list of integers"),
    "many samples": (
        ("position", "samples"),
        [1, 2, 3],
        "expected from 0 to 2, found 3",
    ),
    "created": (("created",), 3, "created: expected a string, found 3"),
    "groups": (("groups",), [["a", 3]], "groups: expected lists of names"),
    "snapshots": (("snapshots",), "at 5", "snapshots: expected a list of names"),
    "measured": (("measured",), {"other": -1}, "measured: expected integers from 0"),
    "no gradient": (
        ("previous_gradient",),
        None,
        r"torch\.float32 .* found None",
    ),
    "dtype": (
        ("previous_gradient",),
        torch.zeros(1323, dtype=torch.float64),
        r"torch\.float32 .* found torch\.float64 \(1323,\)",
    ),
    "short": (("previous_gradient",), torch.zeros(3), r"found torch\.float32 \(3,\)"),
}


@pytest.mark.parametrize(
    ("place", "value", "problem"), MALFORMED.values(), ids=MALFORMED
)
def test_a_malformed_state_leaves_the_store_unchanged(
    place: tuple[str, ...], value: Any, problem: str, interrupted: tuple[Path, Any]
):
    path, checkpoint = interrupted
    state = copy.deepcopy(checkpoint["recorder"])
    *outer, name = place
    inner = state[outer[0]] if outer else state
    if value is ...:
        del inner[name]
    else:
        inner[name] = value
    training, before = Training(), bytes_of(path)
    training.restore(checkpoint)
    with pytest.raises(SchemaError, match=f"(?s)Resume from another.*{problem}"):
        attempt(path, training, resume=state, samples=2)
    assert bytes_of(path) == before


WRONG: dict[str, Any] = {
    "nothing": ...,
    "None": None,
    "text": "20",
    "bytes": b"20",
    "negative": -1,
    "huge": 1 << 70,
    "fraction": 0.5,
    "NaN": float("nan"),
    "truth": True,
    "list": [[20]],
    "mapping": {"a": {"b": 1}},
    "tensor": torch.zeros(2, 2),
    "object": object(),
}
PLACES: list[tuple[str, ...]] = [
    *(("position", name) for name in ("step", "epoch", "epoch_start", "wall_time")),
    *(("position", name) for name in ("pending", "samples")),
    *((name,) for name in ("created", "position", "groups", "snapshots")),
    *((name,) for name in ("measured", "previous_gradient", "window_sums")),
]
# Times are numbers, older states lack samples and sums, and no snapshot may be listed.
RIGHT = {
    *(("window_sums", name) for name in ("nothing", "None")),
    *(("wall_time", name) for name in ("huge", "fraction")),
    *(("samples", name) for name in ("nothing",)),
}


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_more_than_a_hundred_malformed_states_leave_the_store_unchanged(
    place: tuple[str, ...], interrupted: tuple[Path, Any]
):
    path, checkpoint = interrupted
    training, before = Training(), bytes_of(path)
    training.restore(checkpoint)
    n_refused = 0
    for kind, value in WRONG.items():
        if (place[-1], kind) in RIGHT:
            continue
        state = copy.deepcopy(checkpoint["recorder"])
        inner = state[place[0]] if len(place) > 1 else state
        if value is ...:
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
        with pytest.raises(ValueError, match=r"state|resume"):
            attempt(path, training, resume=state, samples=2)
        assert bytes_of(path) == before, kind
        n_refused += 1
    assert n_refused >= len(WRONG) - 2


NEEDED = [
    *("references/start/c/0", "references/keyframes/c/0/0", "references/codes/c/1/0"),
    *("references/codes/c/3/0", "references/scales/c/0/0", "references/probes/c/0/0"),
    *("references/weights/c/0/0", "references/arrival/c/0/0/0", "tables/c/0/0/0"),
    *("scalars/c/0/0", "signs/c/0/0", "epoch/c/0", "window/c/0", "samples/c/0/0"),
    *("measurements/0/step/c/0", "measurements/0/signs/c/0/0"),
]


@pytest.mark.parametrize("has_state", [True, False], ids=["state", "no-state"])
@pytest.mark.parametrize("damage", [Path.unlink, flip_a_bit], ids=["gone", "flipped"])
@pytest.mark.parametrize("key", NEEDED)
def test_a_damaged_chunk_leaves_the_store_unchanged(
    key: str,
    damage: Callable[[Path], None],
    has_state: bool,
    interrupted: tuple[Path, Any],
    tmp_path: Path,
):
    whole, checkpoint = interrupted
    path = Path(shutil.copytree(whole, tmp_path / "run.zarr"))
    damage(path / key)
    training, before = Training(), bytes_of(path)
    training.restore(checkpoint)
    options = {"resume": checkpoint["recorder"]} if has_state else SINCE_20
    chunk = key if damage is Path.unlink else key.partition("/c/")[0]
    message = (
        rf"cannot be resumed at step 20, .*not been changed.*chunk {chunk} .*Resume"
    )
    with pytest.raises(ValueError, match=message):
        attempt(path, training, samples=2, **options)
    assert bytes_of(path) == before


SINCE_20: dict[str, Any] = {"resume": True, "step": 20}


@pytest.mark.parametrize("name", [".journal", "signs", "signs/c", "snapshots", "final"])
def test_nothing_outside_the_store_is_changed(name: str, tmp_path: Path):
    path, training = tmp_path / "run.zarr", Training()
    with Recorder(path, training.model, training.optimizer, **SMALL) as recorder:
        training.run(recorder, range(3))
        state = recorder.state_dict()
        training.run(recorder, range(3, 6))
        recorder.snapshot("late")
    (path / ".journal").mkdir()
    (path / ".journal" / "notes.txt").write_text("theirs")
    shutil.move(path / name, tmp_path / "outside")
    (path / name).symlink_to(tmp_path / "outside")
    before = bytes_of(tmp_path)
    with pytest.raises(ValueError, match=f"{name}.* leads through a link"):
        Recorder(path, training.model, training.optimizer, resume=state, **SMALL)
    assert bytes_of(tmp_path) == before


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in directory.rglob("*") if f.is_file()}


def test_something_else_is_not_resumed(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"not a trajectory store.*1\.jpg"):
        attempt(tmp_path / "photos", Training(), resume=True, step=0)
