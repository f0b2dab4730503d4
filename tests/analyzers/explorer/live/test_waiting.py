"""``traj-store watch`` waits for a store that does not exist yet."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("bokeh")

from analyzers.cli import main
from analyzers.explorer.live import server
from trajstore.format.run_spec import SchemaError
from trajstore.store.holder import WRITER


def wait(
    store: Path | str, monkeypatch: pytest.MonkeyPatch, *actions: Callable[[], object]
) -> list[str]:
    """Wait for a store, with an action instead of each pause; return what was said."""
    said, left = list[str](), list(actions)
    monkeypatch.setattr("time.sleep", lambda _: left.pop(0)())
    run = server.wait_for_steps(str(store), say=said.append)
    assert run.n_steps == 60
    assert not left
    return said


def test_a_store_that_appears_is_found(
    example_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.zarr"

    def begin() -> None:
        path.mkdir()
        (path / WRITER).write_text("{}")

    said = wait(
        "run.zarr",
        monkeypatch,
        lambda: None,
        begin,
        lambda: shutil.copytree(example_run, path, dirs_exist_ok=True),
    )
    assert said == [f"There is no store at {path} yet. Waiting for it; Ctrl-C ends."]


def test_a_store_that_exists_is_not_waited_for(
    example_run: Path, monkeypatch: pytest.MonkeyPatch
):
    assert not wait(example_run, monkeypatch)


def test_a_typing_error_is_noticed(
    example_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(example_run, tmp_path / "resnet.zarr")
    wrong = tmp_path / "resnt.zarr"
    [said] = wait(wrong, monkeypatch, lambda: shutil.copytree(example_run, wrong))
    assert said.endswith("Its folder has other stores; the nearest are resnet.zarr.")
    absent = tmp_path / "rnus" / "run.zarr"
    [said] = wait(absent, monkeypatch, lambda: shutil.copytree(example_run, absent))
    assert said.endswith(f"Its folder {absent.parent} does not exist, either.")


def test_a_directory_that_is_no_store_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(SchemaError, match="not a trajectory store"):
        wait(tmp_path, monkeypatch)


def test_waiting_ends_with_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    path = os.fspath(tmp_path / "run.zarr")
    monkeypatch.setattr(sys, "argv", ["traj-analyze", "watch", path])
    main()
    printed = capsys.readouterr().out
    assert "Waiting for it; Ctrl-C ends." in printed.replace("\n", " ")
    assert printed.endswith("Stopped waiting.\n")
