"""With `fsync=True`, commits survive a loss of power."""

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.trajstore.recording.regression import SMALL, regression
from trajstore.recording.recorder import Recorder


def record_a_step(path: Path, **options: Any) -> None:
    training = regression()
    with Recorder(path, training.model, training.optimizer, **SMALL, **options):
        training.loss(0).backward()
        training.optimizer.step()


def test_synced_commits_reach_the_disk_before_their_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every file is synced after it is written, as are its directories."""
    synced: list[str] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        synced.append(name.removesuffix(".partial"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    record_a_step(tmp_path / "run.zarr", fsync=True)
    files = [p for p in (tmp_path / "run.zarr").rglob("*") if p.is_file()]
    assert {p.name for p in files} <= set(synced)
    assert synced[-2:] == ["zarr.json", "run.zarr"]
    plain = len(synced)
    record_a_step(tmp_path / "other.zarr")
    assert len(synced) == plain


def test_files_are_synced_before_they_are_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A name never leads to bytes that a power failure would lose."""
    path, synced, renamed = tmp_path / "run.zarr", set[int](), list[str]()
    sync, replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def replace_synced(file: Path, target: Path) -> Path:
        if not target.name.endswith(".partial"):
            renamed.append(str(target.relative_to(path)))
            assert file.stat().st_ino in synced, target
        return replace(file, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace_synced)
    record_a_step(path, fsync=True)
    assert {"zarr.json", "tables/zarr.json", "tables/c/0/0/0"} <= set(renamed)
    assert not list(path.rglob("*.partial"))
