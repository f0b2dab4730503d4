"""The command traj-train, run in this process."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

import xarray as xr

from tests.train.small_workloads import truncate
from train import cli, commands
from train.loop import train
from train.protocols.sweep import sweep_names
from train.protocols.two_run import two_run
from train.workloads.catalogue import WORKLOADS
from trajstore.cli.command_line import Command
from trajstore.reading.run import open_run

SHORT = ["--epochs", "2", "--batch-size", "20"]


@pytest.fixture(autouse=True)
def _hundred_images(monkeypatch: pytest.MonkeyPatch) -> None:
    truncate(monkeypatch, "digits-mlp", 100)


def traj_train(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    monkeypatch.setattr("sys.argv", ["traj-train", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "500")  # sentences are not wrapped
    cli.main()


@pytest.mark.parametrize("command", cli.COMMANDS.values(), ids=lambda c: c.target)
def test_summaries_are_the_first_lines_of_docstrings(command: Command):
    docstring = getattr(commands, command.target.partition(":")[2]).__doc__
    assert " ".join(docstring.partition("\n\n")[0].split()) == command.summary


def test_workloads_are_listed_for_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["traj-train", "list", "--json"])
    cli.main()
    found = json.loads(capsys.readouterr().out)
    assert "digits-mlp" in found["workloads"]
    assert found["sweeps"]["controls"]["runs"] >= 5


@pytest.mark.parametrize("arguments", [["list"], ["--list"]])
def test_list_shows_workloads_and_sweeps(
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    traj_train(monkeypatch, *arguments)
    printed = capsys.readouterr()
    assert ("deprecated" in printed.err) == (arguments == ["--list"])
    lines = printed.out.splitlines()
    for name, workload in WORKLOADS.items():
        assert any(line.split() == [name, *workload.summary.split()] for line in lines)
    for name in sweep_names():
        assert any(line.startswith(f"{name} ") for line in lines)


def test_list_fits_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["traj-train", "list"])
    monkeypatch.setenv("COLUMNS", "80")
    cli.main()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for name in WORKLOADS:
        assert any(line.startswith(f"{name} ") for line in lines)


@pytest.mark.parametrize("command", ["run", "two-run"])
def test_an_unknown_workload_is_refused_with_the_nearest(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(SystemExit, match=r"^1$"):
        traj_train(monkeypatch, command, "digit-mlp", "--out", tmp_path / "run.zarr")
    error = capsys.readouterr().err
    assert error.startswith(
        "traj-train: there is no workload 'digit-mlp'; the nearest are"
    )
    assert "digits-mlp" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("basis", [0, 2])
def test_run_records_a_store(
    basis: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "run.zarr"
    options = ["--sketch-bits", "1024", "--basis", str(basis), "--out", out]
    traj_train(monkeypatch, "run", "digits-mlp", *SHORT, *options)

    run = open_run(out)
    assert (run.n_steps, run.n_epochs, run.status) == (10, 2, "complete")
    assert (run.spec.sketch_bits, run.spec.basis) == (1024, basis)
    assert run.spec.total_steps == 10
    assert np.isfinite(run.steps[["loss", "accuracy"]].to_dataarray()).all()
    assert f"traj-analyze geometry {out}" in capsys.readouterr().out


def test_run_records_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "run.zarr"
    traj_train(monkeypatch, "run", "digits-mlp", *SHORT, "--exact", "--out", out)
    assert open_run(out).spec.exact
    norms = np.linalg.norm(open_run(out).stored.array("gradient")[:], axis=1)
    np.testing.assert_allclose(open_run(out).steps.grad_norm, norms, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*Zarr V3 specification")
@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_two_run_writes_the_exact_geometry(
    layers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "exact.zarr"
    flags = ["--layers"] if layers else []
    traj_train(monkeypatch, "two-run", "digits-mlp", *SHORT, *flags, "--out", out)

    settings = replace(WORKLOADS["digits-mlp"].settings, epochs=2, batch_size=20)
    expected = two_run(lambda observe: train(settings, observe), layers=layers)
    with xr.open_zarr(out, consolidated=False) as written:
        xr.testing.assert_identical(written.load(), expected)


def test_two_run_by_layer_does_not_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "exact.zarr"
    traj_train(monkeypatch, "two-run", "digits-mlp", *SHORT, "--layers", "--out", out)


@pytest.mark.parametrize("command", ["run", "two-run"])
def test_an_existing_path_is_refused_in_one_sentence(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "taken"
    out.write_text("precious")
    with pytest.raises(SystemExit, match=r"^1$"):
        traj_train(monkeypatch, command, "digits-mlp", *SHORT, "--out", out)
    streams = capsys.readouterr()
    assert streams.err.startswith(f"traj-train: {out} exists already")
    assert streams.err.count("\n") == 1
    assert "Traceback" not in streams.err + streams.out
    assert out.read_text() == "precious"


def test_options_out_of_range_are_refused_in_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "run.zarr"
    with pytest.raises(SystemExit, match=r"^1$"):
        traj_train(
            monkeypatch, "run", "digits-mlp", *SHORT, "--basis", "-1", "--out", out
        )
    error = capsys.readouterr().err
    assert error == ("traj-train: basis: expected an integer of at least 0, got -1\n")
    assert not out.exists()


def test_two_run_refuses_a_path_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(FileExistsError, match="exists already; choose a new path"):
        commands.two_run(None, out=tmp_path)  # type: ignore[arg-type]


def test_paths_with_brackets_are_shown_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "run[a].zarr"
    options = ["--sketch-bits", "64", "--out", out]
    traj_train(monkeypatch, "run", "digits-mlp", *SHORT, *options)
    assert f"Recorded {out}." in capsys.readouterr().out
