"""Sweeps: TOML files of runs; complete runs are not recorded again."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from tests.train.small_workloads import truncate
from train import cli
from train.protocols.record import record_resumably
from train.protocols.sweep import load_sweep, sweep_names
from train.workloads.catalogue import WORKLOADS
from trajstore.reading.run import open_run

SWEEP = """
summary = "two short runs"

[[runs]]
name = "one"
workload = "digits-mlp"
epochs = 2
batch_size = 16
width = 16

[[runs]]
name = "two"
workload = "digits-mlp"
epochs = 2
batch_size = 16
width = 16
seed = 7
updates = true
"""
SMALL: dict[str, Any] = {"sketch_bits": 64, "probes": 16}


@pytest.fixture(autouse=True)
def _small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    truncate(monkeypatch, "digits-mlp", 50)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(SWEEP)
    return path


@pytest.mark.parametrize("name", sweep_names())
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
        # Samples are needed to compute the losses at x*.
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
        (
            ("width = 16\nseed = 7", "width = 0"),
            "two: width: expected at least 1, got 0",
        ),
        (
            ("seed = 7", 'optimizer = "ngn"\nweight_decay = 0.1'),
            r"two: weight_decay: expected 0 with ngn, .* got 0\.1",
        ),
        (
            ('"digits-mlp"\nepochs', '"digits-resnet"\nepochs'),
            "one: width: digits-resnet has no width to choose, got 16; leave it out",
        ),
        (("summary =", "summary"), r"mine\.toml is not valid TOML: .* line 2"),
        ((SWEEP, 'summary = "none"'), r"expected tables \[\[runs\]\], got None"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(
    file: Path, change: tuple[str, str], message: str
):
    file.write_text(SWEEP.replace(*change))
    with pytest.raises(ValueError, match=message):
        load_sweep(str(file))


def test_an_unknown_sweep_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match="no sweep 'seeds-cifar'; the nearest are seed-cifar"
    ):
        load_sweep("seeds-cifar")


def test_the_command_records_the_missing_runs(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("COLUMNS", "80")
    created = []

    def record(training: Any, out: Path, *args: Any, **options: Any) -> Any:
        created.append(out.name)
        return record_resumably(training, out, *args, **(options | SMALL))

    monkeypatch.setattr("train.protocols.record.record_resumably", record)
    for expected in (["one.zarr", "two.zarr"], []):
        created.clear()
        monkeypatch.setattr(
            "sys.argv",
            ["traj-train", "sweep", str(file), "--out", str(tmp_path / "runs")],
        )
        cli.main()
        assert created == expected
    printed = capsys.readouterr().out
    assert len(re.findall("already complete", printed)) == 2
    assert max(map(len, printed.splitlines())) <= 80 + len(str(tmp_path))
    assert open_run(tmp_path / "runs" / "two.zarr").measurements == ("update",)

    # Record another sweep into the same directory: its second run is refused before the first
    # run starts.
    file.write_text(SWEEP.replace("seed = 7", "seed = 8").replace('"one"', '"new"'))
    created.clear()
    with pytest.raises(SystemExit, match=r"^1$"):
        cli.main()
    assert created == []
    error = " ".join(capsys.readouterr().err.split())
    assert "belongs to another training run: seed 7 instead of 8" in error


def test_every_measurement_of_the_paper_can_be_recorded(
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
