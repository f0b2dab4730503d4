"""With `on_error="warn"`, no failure of the storage raises an error in the training loop."""

import errno
import os
import shutil
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from zarr.storage import LocalStore

from trajstore.store import deletion, fenced, lock, opening, writer
from trajstore.store.fenced import FencedStore

torch = pytest.importorskip("torch")

from torch import nn

from tests.trajstore.recording.regression import SMALL
from trajstore.recording.recorder import Recorder

Failure = Callable[[Path, pytest.MonkeyPatch], None]


def fail_with(number: int) -> Failure:
    """Return a function that makes every change of a directory fail."""

    def fail(_path: Path, patch: pytest.MonkeyPatch) -> None:
        async def refuse(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        for name in ("set", "delete", "delete_dir"):
            patch.setattr(LocalStore, name, refuse)
        patch.setattr(os, "write", lambda *_: refuse().send(None))

    return fail


def delete(path: Path, _patch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(path)


def replace(path: Path, _patch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(path)
    path.write_text("something else")


def lock_everything(_path: Path, patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    patch.setattr(lock, "_identity", refuse)


FAILURES = {
    "full disk": fail_with(errno.ENOSPC),
    "read-only": fail_with(errno.EROFS),
    "deleted": delete,
    "replaced by a file": replace,
    "unreadable": lock_everything,
}

FREQUENT = ("full disk", "deleted")
"""Failures that the quick tests try with every call."""

CASES = [
    pytest.param(failure, marks=() if name in FREQUENT else pytest.mark.slow, id=name)
    for name, failure in FAILURES.items()
]


class Training:
    """A small network and its recorder."""

    def __init__(self, path: Path | str, **options: Any) -> None:
        self.model = nn.Linear(5, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        options = SMALL | {"on_error": "warn", "samples": 2, "flush_rows": 2} | options
        self.numbers = count()
        self.recorder = Recorder(path, self.model, self.optimizer, **options)

    def steps(self, n: int) -> None:
        for _ in range(n):
            self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(3, 5)).square().mean().backward()
        self.optimizer.step()


CALLS: dict[str, Callable[[Training], object]] = {
    "steps": lambda t: t.steps(8),
    "flush": lambda t: t.recorder.flush(),
    "state_dict": lambda t: t.recorder.state_dict(),
    "snapshot": lambda t: t.recorder.snapshot(f"{next(t.numbers)}"),
    "measure": lambda t: t.recorder.measure("a", b=1.0),
    "take_gradient": lambda t: t.recorder.take_gradient(),
    "start_epoch": lambda t: t.recorder.start_epoch(),
    "log": lambda t: t.recorder.log(a=1.0),
    "log_samples": lambda t: t.recorder.log_samples([1, 2]),
    "close": lambda t: t.recorder.close(),
}


def use(training: Training, first: str) -> None:
    """Make every call, beginning with `first`; end with the calls of the end of a program."""
    CALLS[first](training)
    if first == "close":
        return
    for name, call in CALLS.items():
        if name != "close":
            call(training)
            training.step()
    assert training.recorder.state_dict()["position"]["step"] == 3 + 8 + 9 + (
        8 if first == "steps" else 0
    )


@pytest.mark.parametrize(
    "journal",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["", "journal"],
)
@pytest.mark.parametrize("first", CALLS)
@pytest.mark.parametrize("failure", CASES)
def test_no_failure_of_a_directory_raises(
    failure: Failure,
    first: str,
    journal: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    training = Training(tmp_path / "run.zarr", journal=journal)
    for _ in range(3):
        training.step()
    training.recorder.flush()  # Otherwise files are written while the store is deleted.
    with warnings.catch_warnings(record=True) as caught, monkeypatch.context() as patch:
        warnings.simplefilter("always")
        failure(tmp_path / "run.zarr", patch)
        use(training, first)
        training.recorder.close()
    texts = [str(warning.message) for warning in caught]
    ended = [text for text in texts if "Recording ended before step" in text]
    assert len(ended) <= 1
    assert texts
    assert all("Recording ended" in t or "marked as free" in t for t in texts), texts


@pytest.mark.parametrize("first", CALLS)
def test_no_failure_of_object_storage_raises(
    first: str, monkeypatch: pytest.MonkeyPatch
):
    obstore = pytest.importorskip("obstore")
    memory = obstore.store.MemoryStore()
    for module in (writer, opening, lock, deletion):
        monkeypatch.setattr(module, "open_store", lambda *_, **__: FencedStore(memory))
    training = Training("s3://bucket/run.zarr")
    for _ in range(3):
        training.step()

    async def refuse(*_: Any, **__: Any) -> None:
        raise obstore.exceptions.GenericError("error sending request")

    async def at_once(request: Callable[[], Any], *, seconds: float) -> Any:
        return await request()

    monkeypatch.setattr(FencedStore, "_call", refuse)
    monkeypatch.setattr(fenced, "patiently", at_once)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use(training, first)
        training.recorder.close()
    assert any("Recording ended before step" in str(w.message) for w in caught)


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_an_exception_of_the_training_is_not_replaced(
    failure: Failure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = Training(tmp_path / "run.zarr")
    with (  # noqa: PT012
        warnings.catch_warnings(),
        pytest.raises(ZeroDivisionError, match="theirs"),
        training.recorder,
    ):
        warnings.simplefilter("ignore")
        training.step()
        training.recorder.flush()
        failure(tmp_path / "run.zarr", monkeypatch)
        raise ZeroDivisionError("theirs")
