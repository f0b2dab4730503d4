"""Recordings in object storage are written, read, resumed, locked and analysed."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import analyzers
from analyzers import cli
from analyzers.geometry import stored as results
from trajstore.reading.run import open_run
from trajstore.reading.verify import problems
from trajstore.store import lease
from trajstore.store import location as locations
from trajstore.store.holder import WRITER, StoreLockedError
from trajstore.store.location import open_store

torch = pytest.importorskip("torch")

from torch import nn

from tests.trajstore.recording.warm_process import WarmProcess
from trajstore.recording.recorder import Recorder

OPTIONS: dict[str, Any] = {
    "steps_per_epoch": 6,
    "sketch_bits": 64,
    "probes": 16,
    "flush_rows": 5,
}


class Training:
    """A small training run whose complete state is in its checkpoint."""

    def __init__(self) -> None:
        torch.manual_seed(2)
        self.model = nn.Linear(40, 3)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)

    def record(self, location: str | Path, **options: Any) -> Recorder:
        return Recorder(location, self.model, self.optimizer, **(OPTIONS | options))

    def run(self, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(16, 40, generator=generator)
            self.optimizer.zero_grad()
            (self.model(inputs) - inputs[:, :3].sin()).square().mean().backward()
            self.optimizer.step()


@pytest.fixture
def training() -> Training:
    return Training()


@pytest.fixture(params=["s3", "memory"])
def remote(request: pytest.FixtureRequest) -> str:
    """URL of a store that does not exist yet, reached by obstore or by fsspec."""
    name = request.node.name.replace("[", "-").rstrip("]")
    if request.param == "memory":
        pytest.importorskip("fsspec")
        return f"memory://{name}/run.zarr"
    return f"{request.getfixturevalue('bucket')}/{name}/run.zarr"


def geometry(location: str | Path) -> xr.Dataset:
    result = analyzers.path_geometry(open_run(location)).compute()
    for name in ("run", "computed_from"):
        result.attrs.pop(name)
    return result


def test_a_remote_recording_equals_a_local_one(
    remote: str, training: Training, tmp_path: Path
):
    with Training().record(tmp_path / "run.zarr") as recorder:
        recorder.snapshot("start")
    local = Training()
    with local.record(tmp_path / "local.zarr"):
        local.run(range(20))
    with training.record(remote) as recorder:
        training.run(range(12))
        recorder.flush()
        live = open_run(remote)
        assert (live.status, live.n_steps) == ("running", 12)
        training.run(range(12, 20))
    run = open_run(remote)
    assert (run.status, run.n_steps, run.has_final) == ("complete", 20, True)
    xr.testing.assert_identical(geometry(remote), geometry(tmp_path / "local.zarr"))
    assert list(problems(run, track=iter)) == []


def test_a_remote_recording_is_resumed(remote: str, training: Training, tmp_path: Path):
    whole = Training()
    with whole.record(tmp_path / "whole.zarr"):
        whole.run(range(20))
    with training.record(remote) as recorder:
        training.run(range(8))
        state = recorder.state_dict()
        model = {k: v.clone() for k, v in training.model.state_dict().items()}
        training.run(range(8, 17))
        recorder.snapshot("forgotten")
    training.model.load_state_dict(model)
    with training.record(remote, resume=state):
        training.run(range(8, 20))
    assert open_run(remote).snapshots == ()
    xr.testing.assert_identical(geometry(remote), geometry(tmp_path / "whole.zarr"))


def test_the_command_line_analyses_a_remote_recording(
    bucket: str,
    training: Training,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    remote = f"{bucket}/{request.node.name}/run.zarr"
    with training.record(remote):
        training.run(range(20))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["traj-analyze", "geometry", remote])
    cli.main()
    assert "±" in capsys.readouterr().out
    assert (tmp_path / "run.figures" / "final.png").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "compute", None)  # All chunks are stored.
        stored = analyzers.store_geometry(open_run(remote))
    expected = analyzers.path_geometry(open_run(remote)).compute()
    xr.testing.assert_identical(stored.compute(), expected)


def test_an_existing_remote_store_is_not_overwritten(remote: str, training: Training):
    training.record(remote).close()
    with pytest.raises(FileExistsError, match=r"run\.zarr exists already"):
        training.record(remote)


def test_a_second_writer_is_refused_and_told_of_the_first(
    remote: str, training: Training
):
    with training.record(remote) as recorder:
        training.run(range(3))
        message = (
            rf"written by host .*, pid {os.getpid()} since.*10 minutes after its last"
        )
        with pytest.raises(StoreLockedError, match=message):
            Training().record(remote, resume=True, step=0)
        recorder.flush()
    Training().record(remote, resume=True, step=0).close()


def test_only_one_of_two_rivals_takes_over_an_expired_lease(
    remote: str, training: Training, monkeypatch: pytest.MonkeyPatch
):
    silent = training.record(remote)
    training.run(range(3))
    with monkeypatch.context() as patch:
        patch.setattr(lease, "LEASE_SECONDS", 0)
        rival = Training().record(remote, resume=True, step=0)
    # The writer whose lease ran out notices this, and writes nothing more.
    with pytest.raises(RuntimeError, match=r"deleted, or taken over by another writer"):
        silent.flush()
    before = (open_run(remote).n_steps, open_run(remote).status)
    with pytest.raises(RuntimeError, match="taken over"):
        silent.close()
    assert before == (0, "running")
    rival.close()
    assert open_run(remote).status == "complete"


def test_a_killed_writer_leaves_what_it_committed(
    bucket: str, warm_process: WarmProcess, request: pytest.FixtureRequest
):
    remote = f"{bucket}/{request.node.name}/run.zarr"
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS")}
    program = f"""
import os, sys, time
os.environ |= {aws!r}
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from test_remote_recording import Training
training = Training()
recorder = training.record({remote!r})
training.run(range(13))
recorder.flush()
training.run(range(13, 16))
print("ready", flush=True)
time.sleep(60)
"""
    process = warm_process.start(program, is_ready=True)
    os.kill(process, signal.SIGKILL)
    finished = warm_process.finish()
    assert finished.output == "ready\n", finished.errors
    run = open_run(remote)
    assert run.n_steps >= 13
    assert list(problems(run, track=iter)) == []


def test_no_secret_is_stored(
    bucket: str, training: Training, request: pytest.FixtureRequest
):
    remote = f"{bucket}/{request.node.name}/run.zarr"
    with training.record(remote):
        training.run(range(3))
        store: Any = open_store(remote).__getattribute__("store")
        objects = [page["path"] for pages in store.list() for page in pages]
        texts = [bytes(store.get(path).bytes()) for path in objects]
    assert any(WRITER in path for path in objects)
    for secret in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        assert not any(
            json.dumps(os.environ[secret]).encode() in text for text in texts
        )


def test_an_endpoint_without_encryption_is_allowed_if_it_is_named_so(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://storage.example")
    assert locations._client_options() == {"allow_http": False}
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000")
    assert locations._client_options() == {"allow_http": True}
