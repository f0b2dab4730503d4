"""Resumed recordings, compared with recordings that were not interrupted."""

import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

import analyzers
from trajstore.format.run_spec import SchemaError
from trajstore.reading.run import Run, open_run

torch = pytest.importorskip("torch")

from torch import nn

from tests.trajstore.recording.regression import leave
from tests.trajstore.store.test_chunks import flip_a_bit
from trajstore.recording.recorder import Recorder
from trajstore.tracking.backends.choose import CHOICE

SPE, N_STEPS = 6, 36
SMALL: dict[str, Any] = {"sketch_bits": 64, "probes": 16}


class Training:
    """A small training run whose complete state is in its checkpoint."""

    def __init__(self, *, width: int = 30, groups: int = 1) -> None:
        torch.manual_seed(2)
        self.model = nn.Sequential(nn.Linear(40, width), nn.Tanh(), nn.Linear(width, 3))
        parameters = list(self.model.parameters())
        parts = [parameters[i::groups] for i in range(groups)]
        self.optimizer = torch.optim.SGD(
            [{"params": part} for part in parts], lr=0.05, momentum=0.9
        )

    def run(
        self,
        recorder: Recorder,
        steps: range,
        each: Callable[[int, Recorder], None] = lambda *_: None,
    ) -> None:
        for step in steps:
            each(step, recorder)
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(16, 40, generator=generator)
            self.optimizer.zero_grad()
            loss = (self.model(inputs) - inputs[:, :3].sin()).square().mean()
            loss.backward()
            recorder.log(loss=loss)
            self.optimizer.step()

    def checkpoint(self, recorder: Recorder) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "recorder": recorder.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def record(
    path: Path,
    steps: range = range(N_STEPS),
    save: Path | None = None,
    each: Callable[[int, Recorder], None] = lambda *_: None,
    **options: Any,
) -> None:
    """Record several steps, and save a checkpoint at the end if `save` is given."""
    training = Training()
    options = SMALL | {"steps_per_epoch": SPE} | options
    resume = options.get("resume")
    if isinstance(resume, Path):
        state = torch.load(resume, weights_only=True)
        training.restore(state)
        options["resume"] = state["recorder"] if "step" not in options else True
    recorder = Recorder(path, training.model, training.optimizer, **options)
    training.run(recorder, steps, each)
    if save is None:
        recorder.close()
        return
    torch.save(training.checkpoint(recorder), save)
    # The checkpoint does not contain the steps after it.
    training.run(recorder, range(steps.stop, steps.stop + 5), each)
    recorder.flush()
    leave(recorder)


def contents(run: Run) -> dict[str, Any]:
    """Read every array of a store, except times of day."""
    members = zarr.open_group(run.location, mode="r", use_consolidated=True).members(
        None
    )
    arrays = {
        name: np.asarray(array[...])
        for name, array in members
        if isinstance(array, zarr.Array) and name != "scalars"
    }
    for name in run.metrics:
        if name != "wall_time":
            arrays[f"scalars/{name}"] = run.steps[name].values
    for name, snapshot in run.stored.document.snapshots.items():
        arrays[f"snapshots/{name}"] = np.asarray(run.stored.array(snapshot.array)[...])
    return arrays


def assert_same_bits(found: Run, expected: Run) -> None:
    ours, theirs = contents(found), contents(expected)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].shape == array.shape, name
        assert ours[name].tobytes() == array.tobytes(), name


def assert_same_analysis(found: Run, expected: Run) -> None:
    for reference in ("final", 3):
        ours, theirs = (
            analyzers.path_geometry(run, reference=reference, layers=True).compute()
            for run in (found, expected)
        )
        for name, values in ours.items():
            assert values.values.tobytes() == theirs[name].values.tobytes(), name


@pytest.mark.parametrize("device", ["cpu", "accelerator"])
@pytest.mark.parametrize(
    ("options", "interruptions"),
    [
        ({}, [0, 1, 2, 3, 7, 20, 35]),
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


def attempt(path: Path, training: Training, **options: Any) -> None:
    options = SMALL | {"steps_per_epoch": SPE} | options
    Recorder(path, training.model, training.optimizer, **options).close()


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
        (Training, {"basis": 0}, "basis: 0, recorded with 3"),
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
