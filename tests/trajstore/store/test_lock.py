"""Locks of stores in directories, where locks work and where they do not."""

import asyncio
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trajstore.handmade import write_run
from trajstore.reading.run import open_run
from trajstore.store.holder import (
    PROTOTYPE,
    WRITER,
    StoreLockedError,
    hold,
    is_running,
    let_go,
    new_holder,
)
from trajstore.store.location import open_store
from trajstore.store.lock import LOCK, DirectoryLock, is_written
from trajstore.store.writer import Writer


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A store whose writer was killed."""
    path = tmp_path / "run.zarr"
    write_run(path, n_steps=4, status=None)
    ended = new_holder() | {"pid": 1, "started": -1}
    (path / WRITER).write_text(json.dumps(ended))
    (path / LOCK).write_bytes(b"")
    return path


def reopened(path: Path) -> Writer:
    return Writer(path, open_run(path).spec, resume=True)


# Processes


def test_a_process_of_this_machine_is_seen():
    holder = new_holder()
    assert is_running(holder) is False  # It does not write any store.
    hold(holder)
    assert is_running(holder) is True
    let_go(holder)
    assert is_running(holder) is False


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"started": 1}, False),
        ({"pid": 1 << 22}, False),
        ({"machine": "another"}, None),
        ({"machine": None}, None),
        ({"pid": "1"}, None),
        ({"pid": True}, None),
    ],
)
def test_a_process_that_cannot_be_seen_is_unknown(
    changes: dict[str, Any], expected: bool | None
):
    holder = new_holder() | changes
    hold(holder)
    assert is_running(holder) is expected
    let_go(holder)


def test_a_process_that_ended_is_not_running():
    with subprocess.Popen(["sleep", "60"]) as process:
        stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2]
        started = int(stat.split()[19])
        holder = new_holder() | {"pid": process.pid, "started": started}
        assert is_running(holder) is True
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_running(holder) is False  # The process is a zombie.
        process.wait()
        assert is_running(holder) is False


# Reading


@pytest.fixture
def read_only(killed: Path, tmp_path: Path) -> Iterator[Path]:
    """A file system that cannot be written, with a store whose writer was killed."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mounted)]
    if not shutil.which("mount") or subprocess.run(command, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        shutil.copytree(killed, mounted / "run.zarr")
        command = ["mount", "-o", "remount,ro", str(mounted)]
        subprocess.run(command, check=True)
        yield mounted / "run.zarr"
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def test_a_killed_store_on_a_read_only_file_system_is_read(read_only: Path):
    run = open_run(read_only)
    assert (run.status, run.n_steps) == ("interrupted", 4)
    assert run.steps["loss"].values.tolist() == [0, -1, -2, -3]
    with pytest.raises(OSError, match="Read-only file system"):
        reopened(read_only)


def test_a_live_store_is_running_to_a_reader_who_cannot_write(
    killed: Path, monkeypatch: pytest.MonkeyPatch
):
    real = os.open

    def refuse_writing(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags, *args, **kwargs)

    writer = reopened(killed)
    writer.commit()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse_writing)
        assert open_run(killed).status == "running"
    writer.close()
    (killed / LOCK).write_bytes(b"")
    monkeypatch.setattr(os, "open", refuse_writing)
    assert open_run(killed).status == "interrupted"


def no_locks(_descriptor: int, _operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_without_locks_a_store_is_read_but_not_written(
    killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    writer = reopened(killed)
    writer.commit()
    shutil.copytree(killed, tmp_path / "copy.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", no_locks)
        assert open_run(killed).status == "running"
        with pytest.raises(OSError, match=r"could not lock a file \(.*No locks.*copy"):
            reopened(tmp_path / "copy.zarr")
    writer.close()


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "interrupted"),
        ({"machine": "another"}, "unknown"),
    ],
)
def test_without_locks_the_status_is_not_guessed(
    changes: dict[str, Any],
    status: str,
    killed: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    holder = json.loads((killed / WRITER).read_text()) | changes
    (killed / WRITER).write_text(json.dumps(holder))
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert open_run(killed).status == status
    (killed / WRITER).unlink()
    assert open_run(killed).status == "unknown"
    (killed / LOCK).unlink()
    assert open_run(killed).status == "interrupted"


# Writing


def holder_in_another_process(path: Path, *, forks: bool) -> subprocess.Popen[str]:
    """Start a process that locks a store, and possibly forks in C."""
    program = f"""
import asyncio, ctypes, time
from trajstore.store.location import open_store
from trajstore.store.lock import DirectoryLock
lock = DirectoryLock({str(path)!r}, open_store({str(path)!r}))
asyncio.run(lock.acquire())
child = ctypes.CDLL(None).fork() if {forks} else -1
if child != 0:
    print(child, flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    process.child = int(process.stdout.readline())  # type: ignore[attr-defined]
    return process


def test_a_fork_in_c_does_not_keep_the_lock_of_a_killed_process(killed: Path):
    process = holder_in_another_process(killed, forks=True)
    child: int = process.child  # type: ignore[attr-defined]
    try:
        with pytest.raises(StoreLockedError, match=rf"pid {process.pid} since"):
            reopened(killed)
        assert is_written(str(killed)) is True
        process.kill()
        process.wait()
        assert Path(f"/proc/{child}").exists()
        assert is_written(str(killed)) is False
        writer = reopened(killed)
        writer.commit()
        assert is_written(str(killed)) is True
        writer.close()
        assert not (killed / LOCK).exists()
    finally:
        os.kill(child, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()


def test_an_own_recorder_is_named(killed: Path):
    writer = reopened(killed)
    with pytest.raises(StoreLockedError, match="Close that recorder, or choose"):
        reopened(killed)
    writer.close()
    reopened(killed).close()


def test_nothing_is_written_after_the_lock_file_is_gone(killed: Path):
    writer = reopened(killed)
    writer.commit()
    shutil.rmtree(killed)
    with pytest.raises(StoreLockedError, match=r"run\.zarr was deleted, or taken over"):
        writer._loop.run(
            writer._store.set("zarr.json", PROTOTYPE.buffer.from_bytes(b""))
        )
    with pytest.raises(StoreLockedError, match=r"run\.zarr was deleted, or taken over"):
        writer.commit()
    writer.close()
    assert not killed.exists()


def test_the_lock_is_kept_while_another_process_looks(killed: Path):
    store: Any = open_store(str(killed))
    held = DirectoryLock(str(killed), store)
    asyncio.run(held.acquire())
    for _ in range(3):
        assert is_written(str(killed)) is True
    held.check()
    asyncio.run(held.release())
    assert is_written(str(killed)) is False
