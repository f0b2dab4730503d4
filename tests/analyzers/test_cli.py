"""Test ``analyzers.cli``."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from analyzers import cli
from analyzers.cli import COMMANDS, OLD_NAMES, SYNONYMS

Run = Callable[..., str]


def test_a_missing_store_is_reported_in_one_sentence(tmp_path: Path, refused: Run):
    printed = refused("geometry", tmp_path / "none.zarr")
    assert printed.startswith("traj-analyze: There is no trajectory store at")
    assert list(tmp_path.iterdir()) == []


def test_help_lists_current_names_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["traj-analyze", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main()
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    listed = [line.split()[0] for line in shown.splitlines() if line[:1].strip()]
    assert [name for name in listed if name in COMMANDS] == [*COMMANDS]
    assert not COMMANDS.keys() & (OLD_NAMES | SYNONYMS).keys()


@pytest.mark.parametrize(("old", "new"), (OLD_NAMES | SYNONYMS).items())
def test_old_names_run_the_renamed_command(
    old: str,
    new: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert new in COMMANDS
    stores = [str(tmp_path / name) for name in ("a", "b")][: 1 + (old == "scales")]
    monkeypatch.setattr(sys, "argv", ["traj-analyze", old, *stores])
    with pytest.raises(SystemExit, match=r"^1$"):
        cli.main()
    notice, _, rest = capsys.readouterr().err.partition("traj-analyze: There is no ")
    assert rest
    expected = f"traj-analyze: '{old}' is deprecated; use '{new}'.\n"
    assert notice == (expected if old in OLD_NAMES else "")
