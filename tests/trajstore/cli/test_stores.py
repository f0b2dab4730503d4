"""Test that `traj-store info` prints the contents, the size and the status of a store."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.trajstore import handmade
from tests.trajstore.handmade import small_spec
from trajstore.cli import main as cli
from trajstore.format.arrays import METRIC_BLOCK, step_arrays
from trajstore.format.run_spec import RunSpec
from trajstore.reading.run import open_run
from trajstore.store.writer import Writer

SPEC = small_spec({"weight": (1000, 5), "bias": (5,)})
SIZE = 6 * 1024  # one tensor of five blocks and one of one block


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


def write_run(path: Path, *, n_steps: int, spec: RunSpec = SPEC) -> None:
    writer = Writer(path, spec)
    if n_steps:
        arrays = step_arrays(spec, size=SIZE, n_metrics=METRIC_BLOCK, n_blocks=1)
        rows = {
            name: np.zeros((n_steps, *array.inner), array.dtype)
            for name, array in arrays.items()
            if name != "scalars"
        }
        rows["epoch"] = np.arange(n_steps, dtype="i4") // 4
        writer.steps.append(rows, [{"loss": 1.0, "accuracy": 0.5}] * n_steps)
    writer.commit()
    writer.close()


def info(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, str]:
    """Run the command and return the printed texts by name, with wrapped lines joined."""
    monkeypatch.setattr("sys.argv", ["traj-store", "info", str(path)])
    cli.main()
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert max(map(len, lines)) <= 80
    facts, name = dict[str, str](), ""
    for line in lines:
        # The first column holds names; it is blank in wrapped lines.
        match = re.match(r"(\S+(?: \S+)*)  +(.*)", line)
        if match:
            name, text = match.groups()
            facts[name] = text.strip()
        else:
            facts[name] += f" {line.strip()}"
    return facts


def test_info_prints_the_facts_of_a_recorded_run(
    example_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    facts, run = info(example_run, monkeypatch, capsys), open_run(example_run)
    assert list(facts) == [
        "store",
        "written by",
        "status",
        "parameters",
        "steps",
        "epochs, windows",
        "recorded",
        "scalars",
        "snapshots",
        "size",
        "bytes per step",
        "compression",
    ]
    assert facts["store"].replace(" ", "") == str(example_run)
    assert facts["status"].startswith("complete, started 20")
    # The layers have 20 x 40 + 40 and 40 x 3 + 3 parameters.
    assert facts["parameters"] == "963 in 4 tensors"
    assert facts["steps"] == "60"
    assert facts["epochs, windows"] == f"5, {run.n_windows}"
    assert facts["recorded"] == "1,024 signs, basis of 3, 256 probes"
    logged = ["loss", "lr", "wall_time", "grad_norm", "update_norm", "param_norm"]
    assert sorted(facts["scalars"].split(", ")) == sorted(logged)
    assert facts["snapshots"] == "middle"
    assert "compared with 3.9 kB for a float32 gradient" in facts["bytes per step"]


def test_info_of_a_tiny_run_in_float64_without_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    torch = pytest.importorskip("torch")
    import trajstore

    x = torch.ones(20, dtype=torch.float64, requires_grad=True)
    with trajstore.Recorder(tmp_path / "run", {"x": x}, None) as recorder:
        for _ in range(30):
            x.grad = x.detach().clone()
            with recorder.step(), torch.no_grad():
                x -= 0.1 * x.grad
    facts = info(tmp_path / "run", monkeypatch, capsys)
    assert facts["epochs, windows"].startswith("none, ")
    assert "compared with 160 bytes for a float64 gradient" in facts["bytes per step"]
    assert "exact=True stores such a small network" in facts["compression"]
    with pytest.raises(KeyError, match=r'no epochs: give .* a window, such as "step:'):
        trajstore.parameters_at(tmp_path / "run", 3)


def test_sizes_equal_those_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "run.zarr"
    write_run(path, n_steps=10)
    for name, size in [("references", 3000), ("snapshots", 20_000), ("final", 30_000)]:
        before = sum(f.stat().st_size for f in (path / name).rglob("*") if f.is_file())
        (path / name).mkdir(exist_ok=True)
        (path / name / "more").write_bytes(bytes(size * 1000 - before))
    steps = sum(
        file.stat().st_size
        for file in path.rglob("*")
        if file.is_file()
        and file.relative_to(path).parts[0] not in {"references", "snapshots", "final"}
    )
    facts = info(path, monkeypatch, capsys)
    total = 53e6 + steps
    assert facts["size"] == (
        f"{total / 1e6:.1f} MB: {steps / 1e3:.1f} kB steps, 3.0 MB anchors, 50.0 MB "
        "snapshots and final"
    )
    # A gradient of 5005 numbers has 20 kB.
    per_step = steps / 10
    assert facts["bytes per step"].endswith(
        ", compared with 20.0 kB for a float32 gradient"
    )
    assert facts["compression"] == (
        f"{20_020 / per_step:.3g} x for a step; all gradients would need 200.2 kB, "
        f"{200_200 / total:.3g} x the whole store"
    )


def test_measurements_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    writer = Writer(tmp_path / "run.zarr", handmade.SPEC)
    writer.append_window(handmade.random_window(0))
    rows = handmade.random_rows(0, 3) | {"step": np.arange(3)}
    writer.measurement("full_batch").append(rows, [{"loss": 1.0}] * 3)
    writer.commit()
    writer.close()
    facts = info(tmp_path / "run.zarr", monkeypatch, capsys)
    assert facts["measurements"] == "full_batch (3)"
    assert "kB measurements" in facts["size"]


def test_info_of_a_run_without_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_run(tmp_path / "run.zarr", n_steps=0)
    facts = info(tmp_path / "run.zarr", monkeypatch, capsys)
    assert facts["status"].startswith("interrupted, started 20")
    assert facts["parameters"] == "5,005 in 2 tensors"
    assert facts["steps"] == "0"
    assert facts["epochs, windows"] == "0, 0"
    assert facts["scalars"] == facts["snapshots"] == "none"
    assert "bytes per step" not in facts


def test_info_says_that_a_recording_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    spec = RunSpec.from_json(SPEC.to_json() | {"exact": True})
    write_run(tmp_path / "run.zarr", n_steps=2, spec=spec)
    facts = info(tmp_path / "run.zarr", monkeypatch, capsys)
    assert facts["recorded"] == "exact: whole gradients and parameters"


def test_info_says_that_a_recording_has_no_basis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    spec = RunSpec.from_json(SPEC.to_json() | {"basis": 0})
    write_run(tmp_path / "run.zarr", n_steps=2, spec=spec)
    facts = info(tmp_path / "run.zarr", monkeypatch, capsys)
    assert facts["recorded"] == "64 signs, no basis, 8 probes"


@pytest.mark.parametrize("command", [[], ["info"], ["verify"], ["recover"], ["plan"]])
def test_help_fits_a_terminal(
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("sys.argv", ["traj-store", *command, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main()
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def missing(path: Path) -> None:
    """Leave nothing at the path."""


def foreign(path: Path) -> None:
    path.mkdir()


def damaged(path: Path) -> None:
    write_run(path, n_steps=1)
    document = path / "zarr.json"
    document.write_text(document.read_text().replace('"basis": 2', '"basis": -1'))


PROBLEMS = {
    "missing": (missing, "There is no trajectory store at {path}."),
    "foreign": (foreign, "{path}: not a trajectory store; it has no zarr.json."),
    "damaged": (
        damaged,
        "{path}: zarr.json: does not match its checksum. It is damaged, or was changed by another program. Restore it from a copy of the store.",
    ),
}


@pytest.mark.parametrize(("make", "sentence"), PROBLEMS.values(), ids=PROBLEMS)
def test_info_reports_a_path_without_a_store_in_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
    sentence: str,
):
    path = tmp_path / "run.zarr"
    make(path)
    monkeypatch.setattr("sys.argv", ["traj-store", "info", str(path)])
    with pytest.raises(SystemExit, match=r"^1$"):
        cli.main()
    printed = capsys.readouterr()
    assert printed.out == ""
    # The terminal may break lines within the path.
    found = re.sub(r"\s", "", printed.err)
    assert found == re.sub(r"\s", "", "traj-store: " + sentence.format(path=path))
