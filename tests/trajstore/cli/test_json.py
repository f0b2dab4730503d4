"""Commands of ``traj-store`` print JSON for programs, even if they are quiet."""

import json
from pathlib import Path
from typing import Any

import pytest

from trajstore.cli import main as cli
from trajstore.reading.run import open_run


def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> Any:
    monkeypatch.setattr("sys.argv", ["traj-store", *map(str, words)])
    cli.main()
    [line] = capsys.readouterr().out.splitlines()
    return json.loads(line)


@pytest.mark.parametrize("options", [["--json"], ["--json", "--quiet"]])
def test_info_describes_a_store(
    options: list[str],
    example_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    found = printed(monkeypatch, capsys, "info", example_run, *options)
    run = open_run(example_run)
    expected = {
        "status": "complete",
        "steps": 60,
        "epochs": 5,
        "parameters": run.layout.n_params,
        "tensors": 4,
        "scalars": list(run.metrics),
    }
    assert {name: found[name] for name in expected} == expected
    files = sum(f.stat().st_size for f in example_run.rglob("*") if f.is_file())
    assert sum(found["bytes"].values()) == files
    assert found["recorded"]["probes"] == run.spec.probes


def test_verify_lists_no_problem(
    example_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    found = printed(monkeypatch, capsys, "verify", example_run, "--json")
    assert (found["problems"], found["steps"]) == ([], 60)
    assert found["chunks"] > 10


def test_plan_has_the_arguments_of_a_recorder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ("--params", 1e6, "--steps", 1000, "--steps-per-epoch", 100)
    found = printed(monkeypatch, capsys, "plan", *words, "--json")
    assert found["arguments"]["total_steps"] == 1000
    error = found["stderr_of_step"]
    assert 0 < error["low"] < error["typical"] < error["high"] < 0.1
    assert found["stderr_of_epoch"]["typical"] < error["typical"]
    assert 1000 * found["bytes_per_step"] < found["bytes"]
