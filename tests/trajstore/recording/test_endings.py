"""A recording keeps its rows when it ends or fails, for any reason."""

import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zarr.storage import LocalStore

from trajstore.reading.run import open_run
from trajstore.recording.background import Background
from trajstore.store.holder import StoreLockedError

torch = pytest.importorskip("torch")

from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.trajstore.recording.warm_process import WarmProcess
from trajstore.recording.recorder import Recorder
from trajstore.tracking.tracker import Tracker

OPTIONS: dict[str, Any] = {"sketch_bits": 64, "probes": 16, "steps_per_epoch": 10}

TRAINING = """
import os, signal, sys, time
import torch
from trajstore.recording.recorder import Recorder

model = torch.nn.Linear(30, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
options = {options}

def steps(n):
    for _ in range(n):
        optimizer.zero_grad()
        model(torch.randn(8, 30)).square().mean().backward()
        optimizer.step()

def wait():
    print("ready", flush=True)
    time.sleep(60)
"""


def text(path: Path, program: str) -> str:
    """Return the text of a program that records to a path."""
    return TRAINING.format(options=OPTIONS) + f"path = {str(path)!r}\n" + program


WITH = """
with Recorder(path, model, optimizer, **options):
    steps(23)
    wait()
"""

LEFT_OPEN = """
recorder = Recorder(path, model, optimizer, **options)
steps(23)
wait()
"""


@pytest.mark.parametrize("program", [WITH, LEFT_OPEN], ids=["with", "left-open"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_signal_closes_the_recording(
    program: str, number: int, code: int, warm_process: WarmProcess, tmp_path: Path
):
    path = tmp_path / "run.zarr"
    os.kill(warm_process.start(text(path, program), is_ready=True), number)
    assert warm_process.finish().code == code
    run = open_run(tmp_path / "run.zarr")
    assert (run.n_steps, run.has_final) == (23, True)
    assert run.status in {"failed", "complete"}
    assert not (tmp_path / "run.zarr" / ".lock").exists()


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_interruption_of_a_flush_writes_no_row_twice(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C may come just before or after rows are handed to the writer thread."""
    submit, calls = Background.submit, []

    def interrupted(self: Background, job: Callable[[], None]) -> Any:
        calls.append(job)
        if len(calls) == 4 and place == "before":
            raise KeyboardInterrupt(place)
        submitted = submit(self, job)
        if len(calls) == 4:
            raise KeyboardInterrupt(place)
        return submitted

    monkeypatch.setattr(Background, "submit", interrupted)
    training = Training()
    with (  # noqa: PT012 - which step is interrupted does not matter
        pytest.raises(KeyboardInterrupt, match=place),
        training.record(tmp_path / "run.zarr", flush_rows=2),
    ):
        for _ in range(20):
            training.step()
    run = open_run(tmp_path / "run.zarr")
    assert (run.status, run.has_final) == ("failed", True)
    assert 0 < run.n_steps < 20
    np.testing.assert_array_equal(run.stored.iterations, np.arange(run.n_steps) % 10)
    np.testing.assert_array_equal(run.stored.epochs, np.arange(run.n_steps) // 10)


def test_a_handler_of_the_users_is_left_alone(
    warm_process: WarmProcess, tmp_path: Path
):
    program = """
signal.signal(signal.SIGTERM, lambda *_: print("mine", flush=True) or os._exit(3))
with Recorder(path, model, optimizer, **options):
    wait()
"""
    process = warm_process.start(text(tmp_path / "run.zarr", program), is_ready=True)
    os.kill(process, signal.SIGTERM)
    code, output, _ = warm_process.finish()
    assert (code, output) == (3, "ready\nmine\n")


def test_the_default_of_sigterm_is_put_back(tmp_path: Path):
    # Recorders that other tests left open may have changed the handler.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run.zarr", model, optimizer, **OPTIONS):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_program_that_ends_closes_the_recording(
    warm_process: WarmProcess, tmp_path: Path
):
    program = """
recorder = Recorder(path, model, optimizer, **options)
steps(23)
"""
    code, _, errors = warm_process.run(text(tmp_path / "run.zarr", program))
    assert (code, errors) == (0, "")
    run = open_run(tmp_path / "run.zarr")
    assert (run.n_steps, run.status, run.has_final) == (23, "complete", True)


@pytest.mark.parametrize("how", ["data", "no_grad", "assign", "foreach"])
def test_a_program_that_ends_without_a_step_is_told(
    how: str, warm_process: WarmProcess, tmp_path: Path
):
    updates = {
        "data": "p.data.mul_(0.9)",
        "no_grad": "p.detach().mul_(0.9)",
        "assign": "p.data = 0.9 * p.data",
        "foreach": "torch._foreach_mul_([p.data], 0.9)",
    }
    program = f"""
recorder = Recorder(path, model, optimizer, **options)
for p in model.parameters():
    {updates[how]}
"""
    code, _, errors = warm_process.run(text(tmp_path / "run.zarr", program))
    assert code == 0
    assert "UserWarning: The parameters have changed, but the recorder saw no" in errors


def test_a_program_that_takes_more_steps_than_planned_is_told(
    warm_process: WarmProcess, tmp_path: Path
):
    program = """
recorder = Recorder(path, model, optimizer, total_steps=20, **options)
steps(23)
"""
    code, _, errors = warm_process.run(text(tmp_path / "run.zarr", program))
    assert code == 0
    assert "23 steps were recorded, but `total_steps` was 20" in errors


def test_a_program_that_fails_says_so_in_the_store(
    warm_process: WarmProcess, tmp_path: Path
):
    program = """
recorder = Recorder(path, model, optimizer, **options)
steps(23)
raise ValueError("diverged")
"""
    code, _, errors = warm_process.run(text(tmp_path / "run.zarr", program))
    assert code == 1
    assert "diverged" in errors
    assert (open_run(tmp_path / "run.zarr").status) == "failed"


def test_the_holder_of_a_store_is_named(warm_process: WarmProcess, tmp_path: Path):
    path = tmp_path / "run.zarr"
    process = warm_process.start(text(path, LEFT_OPEN), is_ready=True)
    model = nn.Linear(30, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    message = rf"being written by host .*, pid {process} since 20.*End that process"
    with pytest.raises(StoreLockedError, match=message):
        Recorder(
            tmp_path / "run.zarr", model, optimizer, resume=True, step=0, **OPTIONS
        )
    os.kill(process, signal.SIGKILL)
    warm_process.finish()
    # The system released the lock when the process ended.
    Recorder(
        tmp_path / "run.zarr", model, optimizer, resume=True, step=0, **OPTIONS
    ).close()


class Training:
    """A small training in this process."""

    def __init__(self) -> None:
        self.model = nn.Linear(30, 4)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def record(self, path: Path, **options: Any) -> Recorder:
        return Recorder(path, self.model, self.optimizer, **(OPTIONS | options))

    def step(self, inputs: Any = None) -> None:
        self.optimizer.zero_grad()
        inputs = torch.randn(8, 30) if inputs is None else inputs
        self.model(inputs).square().mean().backward()
        self.optimizer.step()


@pytest.fixture
def training() -> Training:
    return Training()


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)
def test_workers_of_a_loader_do_not_touch_the_store(training: Training, tmp_path: Path):
    data = TensorDataset(torch.randn(64, 30))
    loader = DataLoader(data, 8, num_workers=2, multiprocessing_context="fork")
    with training.record(tmp_path / "run.zarr", flush_rows=2) as recorder:
        for _ in range(2):
            for (inputs,) in loader:
                recorder.log(mean=inputs.mean())
                training.step(inputs)
    run = open_run(tmp_path / "run.zarr")
    assert (run.n_steps, run.status) == (16, "complete")


def in_a_fork(call: Callable[[], object]) -> str:
    """Return the result or the error of a call in a forked process, as text."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = repr(call())
        except BaseException as error:  # noqa: BLE001 - passed on as text
            text = repr(error)
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as answer:
        return answer.read()


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)
def test_a_forked_process_cannot_write(training: Training, tmp_path: Path):
    with training.record(tmp_path / "run.zarr") as recorder:
        training.step()
        recorder.flush()
        before = (tmp_path / "run.zarr" / "zarr.json").read_bytes()
        for call in (
            recorder.flush,
            recorder.start_epoch,
            recorder.state_dict,
            lambda: recorder.log(a=1.0),
            lambda: recorder.snapshot("a"),
        ):
            assert f"belongs to process {os.getpid()}" in in_a_fork(call)
        # The fork can train and end as if there were no recorder.
        assert in_a_fork(training.step) == "None"
        assert in_a_fork(recorder.close) == "None"
        assert in_a_fork(lambda: recorder.__exit__(None, None, None)) == "None"
        assert in_a_fork(lambda: recorder._close_if_live("complete")) == "None"
        assert (tmp_path / "run.zarr" / "zarr.json").read_bytes() == before
        training.step()
    assert open_run(tmp_path / "run.zarr").n_steps == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    mounted = shutil.which("mount") and subprocess.run(
        command, capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is full after 1 MB of chunks."""
    from zarr.storage import LocalStore

    put, written = LocalStore.set, [0]

    async def set_(self: LocalStore, key: str, value: Any) -> None:
        written[0] += len(value)
        if written[0] > 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await put(self, key, value)

    monkeypatch.setattr(LocalStore, "set", set_)
    return tmp_path


DISKS = pytest.mark.parametrize("disk", ["small_disk", "full_disk"])
LARGE: dict[str, Any] = {"probes": 16384, "flush_rows": 8, "reference_every": 4}


def train(training: Training, n_steps: int) -> None:
    """Train slowly, to let the disk fill during training."""
    for _ in range(n_steps):
        training.step()
        time.sleep(0.001)


@DISKS
def test_a_full_disk_stops_the_training(
    disk: str, training: Training, request: pytest.FixtureRequest
):
    path = request.getfixturevalue(disk) / "run.zarr"
    steps = 0
    with (  # noqa: PT012 - how far it gets is not known
        pytest.raises(RuntimeError, match=r"No space left.*stays readable"),
        training.record(path, **LARGE),
    ):
        for steps in range(1000):  # noqa: B007
            training.step()
            time.sleep(0.002)
    run = open_run(path)
    assert 0 < run.n_steps <= steps
    assert np.isfinite(run.steps["grad_norm"]).all()
    assert run.status == "interrupted"


@DISKS
def test_training_continues_after_a_warning(
    disk: str, training: Training, request: pytest.FixtureRequest
):
    path = request.getfixturevalue(disk) / "run.zarr"
    with training.record(path, on_error="warn", **LARGE) as recorder:
        with pytest.warns(UserWarning, match=r"ended before.*No space left"):
            train(training, 900)
        # After the warning, no call in a training loop raises an error.
        recorder.log(loss=1.0)
        recorder.flush()
        recorder.snapshot("late")
        training.step()
        assert recorder.state_dict()["position"]["step"] == 901
    n = open_run(path).n_steps
    assert 0 < n < 900


def test_training_continues_after_an_error_of_measuring(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise ValueError("no such gradient")

    with training.record(tmp_path / "run.zarr", on_error="warn"):
        training.step()
        monkeypatch.setattr(Tracker, "before_step", fail)
        with pytest.warns(UserWarning, match=r"ended before step 1: no such gradient"):
            training.step()
    run = open_run(tmp_path / "run.zarr")
    assert (run.n_steps, run.status, run.has_final) == (1, "interrupted", False)


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_lock_that_cannot_be_released_is_warned_of(
    on_error: Any, training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from zarr.storage import LocalStore

    async def refuse(_: LocalStore, key: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), key)

    path = tmp_path / "run.zarr"
    recorder = training.record(path, on_error=on_error)
    training.step()
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "delete", refuse)
        with pytest.warns(UserWarning, match=r"run\.zarr could not be .*complete"):
            recorder.close()
    run = open_run(path)
    assert (run.n_steps, run.status, run.has_final) == (1, "complete", True)
    # The system's lock is free, so the recording can be resumed.
    training.record(path, resume=True, step=1).close()


@pytest.mark.parametrize("is_replaced", [False, True], ids=["gone", "replaced"])
def test_a_store_deleted_during_recording_is_not_recreated(
    is_replaced: bool, training: Training, tmp_path: Path
):
    path = tmp_path / "run.zarr"
    recorder = training.record(path)
    training.step()
    recorder.flush()
    shutil.rmtree(path)
    if is_replaced:
        Training().record(path).close()
        before = (path / "zarr.json").read_bytes()
    training.step()
    with pytest.raises(RuntimeError, match=r"run\.zarr was deleted, or taken over"):
        recorder.flush()
    with suppress(RuntimeError):
        recorder.close()
    if is_replaced:
        assert (path / "zarr.json").read_bytes() == before
    else:
        assert not (path / "zarr.json").exists()


@pytest.mark.parametrize("after", ["tables/c/0/0/0", "tables/zarr.json", "zarr.json"])
def test_a_store_deleted_during_a_commit_leaves_nothing(
    after: str, training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "run.zarr"
    recorder = training.record(path)
    training.step()
    recorder.flush()
    whole = LocalStore.set

    async def set_and_delete(self: LocalStore, key: str, *args: Any) -> None:
        await whole(self, key, *args)
        if key == after and path.exists():
            shutil.rmtree(path)
            # A file that was written while the directory was deleted.
            path.mkdir()
            (path / "zarr.json").write_text("{}")

    monkeypatch.setattr(LocalStore, "set", set_and_delete)
    training.step()
    with pytest.raises(RuntimeError, match=r"run\.zarr was deleted, or taken over"):
        recorder.flush()
    monkeypatch.undo()
    with suppress(RuntimeError):
        recorder.close()
    assert not path.exists()
    Training().record(path).close()


def test_a_journal_needs_a_directory(training: Training):
    with pytest.raises(ValueError, match=r"s3://runs/run\.zarr is remote"):
        Recorder("s3://runs/run.zarr", training.model, training.optimizer, journal=True)
