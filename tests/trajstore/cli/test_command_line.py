"""Test that commands run by name, and that users' errors have no traceback."""

import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from analyzers.cli import COMMANDS as ANALYSES
from trajstore.cli.command_line import EXTRAS, Command, run_command_line
from trajstore.cli.main import COMMANDS as STORE_COMMANDS
from trajstore.cli.main import main
from trajstore.format.run_spec import SchemaError


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


def run_with(
    monkeypatch: pytest.MonkeyPatch,
    commands: dict[str, Callable[..., None]],
    *arguments: str,
    prog: str = "tool",
) -> None:
    module = ModuleType("tried_commands")
    for name, command in commands.items():
        setattr(module, name, command)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("sys.argv", ["tool", *arguments])
    table = {name: Command(f"tried_commands:{name}", "Try.") for name in commands}
    run_command_line(table, prog=prog, description="Try commands.")


def failing_with(error: Exception) -> Callable[[], None]:
    def command() -> None:
        """Fail."""
        raise error

    return command


def test_the_named_command_gets_its_arguments(monkeypatch: pytest.MonkeyPatch):
    calls: list[object] = []

    def one(*, path: Path, times: int = 2) -> None:
        """Do one thing."""
        calls.append(("one", path, times))

    def two() -> None:
        """Do another."""
        calls.append("two")

    commands: dict[str, Callable[..., None]] = {"one": one, "two": two}
    run_with(monkeypatch, commands, "one", "--path", "a/b", "--times", "5")
    run_with(monkeypatch, commands, "two")
    assert calls == [("one", Path("a/b"), 5), "two"]


def test_help_names_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    commands = {"one": failing_with(OSError()), "two": failing_with(OSError())}
    with pytest.raises(SystemExit, match=r"^0$"):
        run_with(monkeypatch, commands, "--help")
    shown = capsys.readouterr().out
    assert "Try commands." in shown
    assert re.search(r"\bone\b", shown)
    assert re.search(r"\btwo\b", shown)


def test_an_unknown_command_is_a_usage_error_that_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    commands = {"one": failing_with(OSError()), "three": failing_with(OSError())}
    with pytest.raises(SystemExit, match=r"^2$"):
        run_with(monkeypatch, commands, "thre")
    expected = (
        "tool: there is no command 'thre'; the nearest are three. See tool --help.\n"
    )
    assert capsys.readouterr().err == expected


def test_without_arguments_the_help_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match=r"^2$"):
        run_with(monkeypatch, {"one": failing_with(OSError())})
    assert "Try commands." in capsys.readouterr().out


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    package = EXTRAS[extra][0]
    error = ModuleNotFoundError("no such module", name=f"{package}.inner")
    with pytest.raises(SystemExit, match=r"^1$"):
        run_with(monkeypatch, {"fail": failing_with(error)}, "fail")
    expected = (
        f"tool: this command needs the package {package}, which is not installed. Run\n"
        f'pip install "trajstore[{extra}]"\n'
    )
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("prog", "extra"), [("traj-train", "train"), ("traj-analyze", "analyze")]
)
def test_the_extra_of_the_script_is_named(
    prog: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    error = ModuleNotFoundError("no such module", name="scipy")
    with pytest.raises(SystemExit, match=r"^1$"):
        run_with(monkeypatch, {"fail": failing_with(error)}, "fail", prog=prog)
    assert f"[{extra}]" in capsys.readouterr().err


def test_a_message_that_names_the_installation_is_printed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    monkeypatch.setattr("sys.argv", ["traj-store", "info", "s3://bucket/run.zarr"])
    with pytest.raises(SystemExit, match=r"^1$"):
        main()
    assert capsys.readouterr().err == (
        "traj-store: Stores at s3:// need the package obstore, which is not installed. "
        'Run\npip install "trajstore[remote]"\n'
    )


@pytest.mark.parametrize(
    "command",
    sorted({*STORE_COMMANDS.values(), *ANALYSES.values()}),
    ids=lambda c: c.target,
)
def test_summaries_are_the_first_lines_of_docstrings(command: Command):
    module, _, name = command.target.partition(":")
    docstring = getattr(import_module(module), name).__doc__
    assert " ".join(docstring.partition("\n\n")[0].split()) == command.summary


ERRORS: dict[str, tuple[Exception, str]] = {
    "OSError": (FileNotFoundError("nothing at x"), "tool: nothing at x"),
    "ValueError": (ValueError("wrong [value]"), "tool: wrong [value]"),
    "SchemaError": (SchemaError(["a: missing", "b: 2"]), "tool: a: missing\nb: 2"),
    "KeyError": (KeyError("no 'name'; it has ['x']"), "tool: no 'name'; it has ['x']"),
    "RuntimeError": (RuntimeError("writing failed"), "tool: writing failed"),
    "limit": (NotImplementedError("two devices"), "tool: two devices"),
}


@pytest.mark.parametrize(("error", "text"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_printed_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    text: str,
):
    commands = {"fail": failing_with(error), "other": failing_with(error)}
    with pytest.raises(SystemExit, match=r"^1$"):
        run_with(monkeypatch, commands, "fail")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == text + "\n"


def test_a_mistake_in_the_code_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    error = AttributeError("a bug")
    commands = {"fail": failing_with(error), "other": failing_with(error)}
    with pytest.raises(AttributeError, match="a bug"):
        run_with(monkeypatch, commands, "fail")
