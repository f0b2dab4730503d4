"""Signals while a recording is opened or closed cost no rows."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from trajstore.reading.run import open_run

torch = pytest.importorskip("torch")

from torch import nn

from tests.trajstore.recording.regression import SMALL
from tests.trajstore.recording.warm_process import WarmProcess
from trajstore.recording.process_exit import signals_wait
from trajstore.recording.recorder import Recorder
from trajstore.store.writer import Writer

IN_CI, IN_THE_LONG_RUN = 4, 50

SIGNALS = (signal.SIGTERM, signal.SIGINT)

PROGRAM = """
import time
import torch
from trajstore.recording.recorder import Recorder
from trajstore.store.writer import Writer

model = torch.nn.Linear(30, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
options = {{"sketch_bits": 64, "probes": 16, "steps_per_epoch": 10}}
commit = Writer.commit

def slow(writer):
    time.sleep(0.2)
    commit(writer)

{opening}
    for _ in range(23):
        optimizer.zero_grad()
        model(torch.randn(8, 30)).square().mean().backward()
        optimizer.step()
    Writer.commit = slow
    print("ready", flush=True)
    {ending}
"""

OPENINGS = {
    "with": "with Recorder({path!r}, model, optimizer, **options) as recorder:",
    "left open": "recorder = Recorder({path!r}, model, optimizer, **options)\nif True:",
}


def check_two_signals(
    warm_process: WarmProcess, directory: Path, n_runs: int, seed: int
) -> None:
    """Send a signal, and a second signal at a random time while the recording is closed."""
    rng = random.Random(seed)
    for i in range(n_runs):
        path = directory / f"{i}.zarr"
        opening = OPENINGS[rng.choice(sorted(OPENINGS))].format(path=str(path))
        ending = "time.sleep(60)"
        program = PROGRAM.format(opening=opening, ending=ending)
        process = warm_process.start(program, is_ready=True)
        first, second = rng.choices(SIGNALS, k=2)
        os.kill(process, first)
        time.sleep(rng.uniform(0.0, 0.4))
        os.kill(process, second)
        # The exit code is Python's: it may be 0 if it prints a traceback at the second Ctrl-C.
        ended = warm_process.finish()
        run = open_run(path)
        assert (run.n_steps, run.has_final) == (23, True), (first, second, ended)
        assert run.status in {"failed", "complete"}
        assert not (path / ".lock").exists()


def test_a_second_signal_loses_nothing(warm_process: WarmProcess, tmp_path: Path):
    check_two_signals(warm_process, tmp_path, IN_CI, seed=1)


@pytest.mark.slow
def test_many_second_signals_lose_nothing(warm_process: WarmProcess, tmp_path: Path):
    check_two_signals(warm_process, tmp_path, IN_THE_LONG_RUN, seed=2)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_closing_takes_effect_afterwards(
    number: int, warm_process: WarmProcess, tmp_path: Path
):
    path = tmp_path / "run.zarr"
    program = PROGRAM.format(
        opening=OPENINGS["with"].format(path=str(path)), ending="pass"
    )
    process = warm_process.start(program, is_ready=True)
    time.sleep(0.1)
    os.kill(process, number)
    ended = warm_process.finish()
    assert ended.code == (143 if number == signal.SIGTERM else -signal.SIGINT)
    assert "takes effect when all rows are written. To end at once" in ended.errors
    assert f"kill -9 {process}" in ended.errors
    run = open_run(path)
    assert (run.n_steps, run.status, run.has_final) == (23, "complete", True)


def test_handlers_are_put_back_and_called_after_the_closing():
    calls = list[str]()
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append("theirs"))
    try:
        with signals_wait("run.zarr"):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            calls.append("closed")
        assert calls == ["closed", "theirs"]
        signal.raise_signal(signal.SIGTERM)
        assert calls == ["closed", "theirs", "theirs"]
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with signals_wait("run.zarr"):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_interruption_of_opening_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = nn.Linear(30, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path, commit = tmp_path / "run.zarr", Writer.commit

    def interrupt(writer: Writer) -> None:
        timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
        timer.start()
        time.sleep(0.3)
        commit(writer)

    # A program that a shell starts in the background ignores this signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "commit", interrupt)
        with pytest.raises(KeyboardInterrupt):  # noqa: PT011 - it has no message
            Recorder(path, model, optimizer, **SMALL)
    signal.signal(signal.SIGINT, before)
    assert open_run(path).status == "interrupted"
    assert not (path / ".lock").exists()
    Recorder(path, model, optimizer, resume=True, step=0, **SMALL).close()
