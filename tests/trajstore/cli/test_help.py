"""Help answers at once, fits a terminal, and needs no large library."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from trajstore.cli.command_line import Command, run_command_line
from trajstore.cli.console import QUIET, make_console, progress
from trajstore.cli.help_text import _metavar

ROOT = Path(__file__).parent.parent.parent.parent

LARGE = ("dask", "matplotlib", "pandas", "scipy", "sklearn", "torch", "xarray", "zarr")

HELP = """
import contextlib, io, json, os, sys
from importlib import import_module
printed = {}
scripts = {"traj-store": "trajstore.cli.main", "traj-analyze": "analyzers.cli", "traj-train": "train.cli"}
def call(*arguments):
    text = io.StringIO()
    sys.argv = list(arguments)
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        module.main()
    printed[" ".join(arguments)] = text.getvalue()
for script, name in scripts.items():
    module = import_module(name)
    call(script, "--help")
    call(script, "--version")
    for command in module.COMMANDS:
        call(script, command, "--help")
call("traj-train", "run", "digits-mlp", "--help")
call("traj-train", "list")
large = [name for name in json.loads(os.environ["LARGE"]) if name in sys.modules]
sys.stdout.write(json.dumps([printed, large]))
"""


@pytest.fixture(name="helps", scope="module")
def _helps() -> Any:
    environment = {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "LARGE": json.dumps(LARGE)}
    done = subprocess.run(
        [sys.executable, "-c", HELP],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_help_and_list_import_no_large_library(helps: Any):
    assert helps[1] == []


def test_every_help_fits_80_columns(helps: Any):
    for command, text in helps[0].items():
        assert len(text.splitlines()) >= 1, command
        long = [line for line in text.splitlines() if len(line) > 80]
        # A list of choices is one word.
        assert [line for line in long if "{" not in line] == [], command


def test_every_command_has_the_option_quiet_and_no_value_is_called_none(helps: Any):
    for command, text in helps[0].items():
        if command.endswith("--help") and command.count(" ") > 1:
            assert "{None}" not in text, command
            if command != "traj-train run --help" and "two-run --help" not in command:
                assert "--quiet" in text, command


def test_every_analysis_prints_json_and_chooses_its_folder(helps: Any):
    for command, text in helps[0].items():
        is_analysis = command.startswith("traj-analyze ") and "options" in text
        if is_analysis and "--format" in text and "--stores" not in text:
            assert "--json" in text, command
            assert "--out DIR" in text, command


def test_workloads_are_listed_without_torch(helps: Any):
    assert "digits-resnet" in helps[0]["traj-train list"]
    assert "Number of passes" in helps[0]["traj-train run digits-mlp --help"]


def run_one(monkeypatch: pytest.MonkeyPatch, function: Any, *arguments: str) -> None:
    monkeypatch.setitem(sys.modules, "tried", type(sys)("tried"))
    monkeypatch.setattr(sys.modules["tried"], "one", function, raising=False)
    monkeypatch.setattr("sys.argv", ["tool", "one", *arguments])
    run_command_line({"one": Command("tried:one", "Try.")}, prog="tool", description="")


def noisy(*, n: int | None = None) -> None:
    """Print, and show progress.

    Parameters
    ----------
    n : int, optional
        Number of things,
        described in two lines.
    """
    make_console().print(f"printed {n}")
    list(progress([1, 2], "counting"))


def test_quiet_commands_print_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    token = QUIET.set(False)
    try:
        run_one(monkeypatch, noisy, "--n", "3")
        assert "printed 3" in capsys.readouterr().out
        run_one(monkeypatch, noisy, "--quiet")
        assert capsys.readouterr() == ("", "")
    finally:
        QUIET.reset(token)


def test_descriptions_of_options_are_joined_and_wrapped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        run_one(monkeypatch, noisy, "--help")
    printed = capsys.readouterr().out
    assert "--n INT" in printed
    assert "Number of things, described in two lines. " in printed


def test_types_of_options_have_names():
    assert _metavar(float | None) == "FLOAT"
    assert _metavar(Literal["a", "b"] | None) == "{a,b}"
    assert _metavar(tuple[str, ...] | None) == "TEXT [TEXT ...]"
    assert _metavar(Path | None) == "PATH"
