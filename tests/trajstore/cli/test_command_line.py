"""Test that commands run by name, and that users' errors have no traceback."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from trajstore.cli.command_line import run_command_line
from trajstore.format.run_spec import SchemaError


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


def run_with(
    monkeypatch: pytest.MonkeyPatch,
    commands: dict[str, Callable[..., None]],
    *arguments: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["tool", *arguments])
    run_command_line(commands, prog="tool", description="Try commands.")


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


def test_an_unknown_command_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    commands = {"one": failing_with(OSError()), "two": failing_with(OSError())}
    with pytest.raises(SystemExit, match=r"^2$"):
        run_with(monkeypatch, commands, "three")
    assert "three" in capsys.readouterr().err


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
