"""Sweeps: plain files of runs, of which what is done is not done again."""

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from tests.train.little import leave
from train import cli
from train.loop import _Loop
from train.protocols import record as recording
from train.protocols.record import attrs, checkpoint_path, is_complete, record_resumably
from train.protocols.sweep import load_sweep, names
from train.workloads.catalogue import WORKLOADS
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder

SWEEP = """
summary = "two short runs"

[[runs]]
name = "one"
workload = "digits-mlp"
epochs = 2
batch_size = 16

[[runs]]
name = "two"
workload = "digits-mlp"
epochs = 2
batch_size = 16
seed = 7
updates = true
"""
SMALL: dict[str, Any] = {"sketch_bits": 64, "probes": 16}


@pytest.fixture(autouse=True)
def _little_data(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("digits-mlp", "digits-resnet"):
        leave(monkeypatch, name, 50)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(SWEEP)
    return path


@pytest.mark.parametrize("name", names())
def test_every_sweep_can_be_read(name: str):
    sweep = load_sweep(name)
    assert len(sweep.runs) > 1
    assert sweep.summary != name
    assert all(run.training.workload in WORKLOADS for run in sweep.runs)


def test_learning_rates_grow_with_the_root_of_the_batch_size():
    for name in ("batch-size-cifar", "batch-size-wikitext2"):
        runs = load_sweep(name).runs
        ratios = [run.training.lr / run.training.batch_size**0.5 for run in runs]
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3)
    assert {run.training.lr for run in load_sweep("batch-size-cifar").runs} >= {0.005}


def test_the_embedded_sweep_changes_one_factor_at_a_time():
    base, *others = (run.training for run in load_sweep("embedded").runs)
    resnets = [t for t in (base, *others) if t.workload == base.workload]
    assert len({t.optimizer for t in resnets}) == 3
    assert len({t.batch_size for t in resnets}) == 4
    assert len({t.seed for t in resnets}) == 5
    assert len({t.epochs for t in resnets if not t.full_batch}) == 3


@pytest.mark.parametrize(
    ("name", "workload", "factor", "values", "n_seeds"),
    [
        ("width-mlp", "fmnist-mlp", "width", {2**k for k in range(5, 13)}, 4),
        ("width-cnn", "cifar-cnn", "width", {2**k for k in range(5, 12)}, 4),
        ("batch-resnet9", "cifar100-resnet9", "batch_size", {64, 128, 256, 512}, 4),
        ("optimizers", "cifar100-resnet9", "optimizer", {"sgd", "momentum", "adam"}, 4),
        ("embedded", "digits-mlp", "width", {32, 128, 512, 2048}, 2),
    ],
)
def test_sweeps_of_the_alpha_beta_paper_change_one_factor_and_the_seed(
    name: str, workload: str, factor: str, values: set[Any], n_seeds: int
):
    trainings = [run.training for run in load_sweep(f"alpha-beta-{name}").runs]
    found = [(getattr(t, factor), t.seed) for t in trainings]
    assert sorted(found) == sorted((v, s) for v in values for s in range(n_seeds))
    follows = {"optimizers": {"lr"}, "embedded": {"lr", "epochs"}}.get(name, set())
    free = {factor, "seed", "record_samples"} | follows
    base = WORKLOADS[workload].settings
    for training in trainings:
        changed = {k for k, v in asdict(training).items() if v != getattr(base, k)}
        assert changed <= free
        # For the losses at x*.
        assert training.record_samples
    if factor == "optimizer":
        rates = {t.optimizer: t.lr for t in trainings}
        assert rates == {"sgd": 0.01, "momentum": 0.01, "adam": 1e-4}


def test_settings_and_changes_reach_the_runs(file: Path):
    one, two = load_sweep(str(file), max_steps=5).runs
    assert (one.name, one.training.seed, one.training.max_steps) == ("one", 0, 5)
    assert (two.name, two.training.seed, two.training.max_steps) == ("two", 7, 5)
    assert (one.updates, two.updates) == (False, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("digits-mlp", "digits-mpl"),
            "no workload 'digits-mpl'; the nearest are digits-mlp",
        ),
        (("epochs", "epoch"), "one has no setting 'epoch'; the nearest are epochs"),
        (("name", "nam"), "a run has no 'name'"),
        (("two", "one"), "several runs have the same name"),
        (('"two"', '"../two"'), r"expected the name of a file.*, got '\.\./two'"),
        (('"two"', "2"), "expected the name of a file without its ending, got 2"),
        (("epochs = 2", 'epochs = "2"'), "one: epochs: expected a whole number"),
        (("seed = 7", 'control = "noise"'), "two: control: expected one of"),
        (("updates = true", "updates = 1"), "two: updates: expected true or false"),
        (("seed = 7", "width = 0"), "two: width: expected at least 1, got 0"),
        (
            ("seed = 7", 'optimizer = "ngn"\nweight_decay = 0.1'),
            r"two: weight_decay: expected 0 with ngn, .* got 0\.1",
        ),
        (
            ('"digits-mlp"\nepochs', '"digits-resnet"\nwidth = 3\nepochs'),
            "one: width: digits-resnet has no width to choose, got 3; leave it out",
        ),
        (("summary =", "summary"), r"mine\.toml is no TOML: .* line 2"),
        ((SWEEP, 'summary = "none"'), r"expected tables \[\[runs\]\], got None"),
    ],
)
def test_mistakes_are_one_sentence(file: Path, change: tuple[str, str], message: str):
    file.write_text(SWEEP.replace(*change))
    with pytest.raises(ValueError, match=message):
        load_sweep(str(file))


def test_an_unknown_sweep_is_told_with_the_nearest():
    with pytest.raises(
        ValueError, match="no sweep 'seeds-cifar'; the nearest are seed-cifar"
    ):
        load_sweep("seeds-cifar")


class StopError(Exception):
    """Ends a training in its midst."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__("stop")

    @staticmethod
    def stop(*_: object) -> None:
        raise StopError


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path: Path):
    training = load_sweep("embedded", epochs=3, batch_size=16).runs[0].training
    options = SMALL | {"updates": True, "checkpoint_seconds": 0}
    record_resumably(training, tmp_path / "whole.zarr", **options)
    step = _Loop._step

    def failing(self: Any, number: int, *args: Any) -> None:
        if number == 7:
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


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(tmp_path: Path):
    training = load_sweep("embedded", epochs=2, batch_size=16).runs[0].training
    out = tmp_path / "run.zarr"
    interrupted(training, out)
    assert out.exists()
    assert not checkpoint_path(out).exists()
    record_resumably(training, out, **SMALL)
    assert (open_run(out).status, open_run(out).n_steps) == ("complete", 6)


def test_the_checkpoint_of_another_training_is_refused(tmp_path: Path):
    training = load_sweep("embedded", epochs=2, batch_size=16).runs[0].training
    torch.save({"attrs": {}}, checkpoint_path(tmp_path / "run.zarr"))
    with pytest.raises(
        ValueError, match="is of another training: workload None instead of 'digits-res"
    ):
        record_resumably(training, tmp_path / "run.zarr", **SMALL)


def test_checkpoints_are_no_more_frequent_than_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = load_sweep("embedded", epochs=4, batch_size=16).runs[0].training
    clock = iter([0.0, 4.0, 6.0, 6.0, 9.0])
    saved = []
    save = torch.save

    def counted(state: dict[str, Any], path: Path) -> None:
        saved.append(state["epoch"])
        save(state, path)

    monkeypatch.setattr(recording, "monotonic", lambda: next(clock))
    monkeypatch.setattr(torch, "save", counted)
    record_resumably(training, tmp_path / "a.zarr", checkpoint_seconds=5, **SMALL)
    # They end after 4, 6 and 9 seconds; the last of all needs none.
    assert saved == [2]
    assert list(clock) == []


def interrupted(training: Any, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Loop, "epoch", StopError.stop)
        with pytest.raises(StopError, match="stop"):
            record_resumably(training, out, **SMALL)


def test_what_is_left_of_another_training_is_refused(tmp_path: Path):
    training = load_sweep("embedded", epochs=2, batch_size=16).runs[0].training
    out = tmp_path / "run.zarr"
    interrupted(training, out)
    before = open_run(out).attrs
    other = replace(training, lr=0.5, seed=3)
    with pytest.raises(
        ValueError,
        match=r"run\.zarr is of another training: lr 0\.02 instead of 0\.5, seed 0 ins",
    ):
        record_resumably(other, out, **SMALL)
    assert open_run(out).attrs == before


def test_a_complete_store_is_not_begun_anew(tmp_path: Path):
    training = load_sweep("embedded", epochs=1, batch_size=16).runs[0].training
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
    training = load_sweep("embedded", epochs=1, batch_size=25).runs[1].training
    recording.record(training, tmp_path / "run.zarr", **SMALL)
    found = open_run(tmp_path / "run.zarr").attrs
    assert found == attrs(training)
    assert found["training"]["workload"] == "digits-resnet"
    assert found["training"]["optimizer"] == "sgd"
    assert "embedded" in found["data"]


def test_the_command_does_what_is_left(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("COLUMNS", "80")
    created = []
    init = Recorder.__init__

    def counted(self: Recorder, path: Any, *args: Any, **kwargs: Any) -> None:
        created.append(Path(path).name)
        init(self, path, *args, **(kwargs | SMALL))

    monkeypatch.setattr(Recorder, "__init__", counted)
    for expected in (["one.zarr", "two.zarr"], []):
        created.clear()
        monkeypatch.setattr(
            "sys.argv",
            ["traj-train", "sweep", str(file), "--out", str(tmp_path / "runs")],
        )
        cli.main()
        assert created == expected
    printed = capsys.readouterr().out
    assert len(re.findall("there already", printed)) == 2
    assert max(map(len, printed.splitlines())) <= 80 + len(str(tmp_path))
    assert open_run(tmp_path / "runs" / "two.zarr").measurements == ("update",)

    # Another sweep into the same place: refused before it begins, for its second run.
    file.write_text(SWEEP.replace("seed = 7", "seed = 8").replace('"one"', '"new"'))
    created.clear()
    with pytest.raises(SystemExit, match=r"^1$"):
        cli.main()
    assert created == []
    error = " ".join(capsys.readouterr().err.split())
    assert "is of another training: seed 7 instead of 8" in error


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_trains_on_its_stand_in(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    leave(monkeypatch, name, 4, 2)
    settings = WORKLOADS[name].settings
    batch_size = min(2, settings.batch_size)
    settings = replace(settings, data="embedded", batch_size=batch_size, max_steps=2)
    if settings.width is not None:
        settings = replace(settings, width=16)
    recording.record(settings, tmp_path / "run.zarr", basis=1, **SMALL)
    run = open_run(tmp_path / "run.zarr")
    assert (run.n_steps, run.status) == (2, "complete")
    assert np.isfinite(run.steps.loss).all()
    assert run.attrs["training"]["workload"] == name
    assert "embedded" in run.attrs["data"]


def test_all_that_the_paper_measures_can_be_asked_for(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    arguments = [str(file), "--out", str(tmp_path / "runs"), "--measurements"]
    monkeypatch.setattr("sys.argv", ["traj-train", "sweep", *arguments])
    cli.main()
    for name in ("one", "two"):
        run = open_run(tmp_path / "runs" / f"{name}.zarr")
        assert set(run.measurements) == {"update", "full_batch", "fixed_batches"}
        assert run.measured("full_batch").n_steps == 2
