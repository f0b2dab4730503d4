"""Recordings in object storage that stumbles, hangs and loses answers."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajstore.reading.run import open_run
from trajstore.reading.verify import problems
from trajstore.store import lease, patience

pytest.importorskip("torch")
pytest.importorskip("obstore")

from tests.faulty_proxy import FaultyProxy
from tests.trajstore.recording.resumable import SMALL, SPE, Training
from trajstore.recording.recorder import Recorder

IN_CI, IN_THE_LONG_RUN = 2, 20

SEEDS = range(10)
"""Seeds of the faults in the long run, each for `IN_THE_LONG_RUN` recordings."""

STOP, SAVED, N_STEPS = 9, 6, 14


@pytest.fixture
def proxy(
    request: pytest.FixtureRequest, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyProxy]:
    """A proxy before the emulated storage, which new stores use."""
    seed = getattr(request, "param", 1)
    proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"], rate=0.0, seed=seed)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.close()


def record(location: str | Path, training: Training, **options: Any) -> Recorder:
    options = SMALL | {"steps_per_epoch": SPE, "flush_rows": 3} | options
    return Recorder(location, training.model, training.optimizer, **options)


def train_resumed(location: str | Path) -> None:
    """Record a few steps, and resume from a checkpoint in the middle."""
    training = Training()
    with record(location, training) as recorder:
        training.run(recorder, range(SAVED))
        saved = training.checkpoint(recorder)
        model = {name: value.clone() for name, value in saved["model"].items()}
        momentum = saved["optimizer"]
        momentum["state"] = {
            k: {name: v.clone() for name, v in state.items()}
            for k, state in momentum["state"].items()
        }
        training.run(recorder, range(SAVED, STOP))
        recorder.snapshot("dropped")
    training.restore({"model": model, "optimizer": momentum})
    with record(location, training, resume=saved["recorder"]) as recorder:
        training.run(recorder, range(SAVED, N_STEPS))
        recorder.snapshot("late")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Contents of a run that no fault has disturbed."""
    path, training = tmp_path_factory.mktemp("whole") / "run.zarr", Training()
    with record(path, training) as recorder:
        training.run(recorder, range(N_STEPS))
        recorder.snapshot("late")
    return arrays_of(path)


def arrays_of(location: str | Path) -> dict[str, Any]:
    run = open_run(location)
    assert (run.status, run.n_steps, run.has_final) == ("complete", N_STEPS, True)
    assert list(problems(run, track=iter)) == []
    document = run.stored.document
    arrays = {
        name: np.asarray(run.stored.array(name)[...])
        for name in document.arrays
        if name != "scalars" and not name.startswith("snapshots")
    }
    arrays |= {name: run.steps[name].values for name in ("loss", "grad_norm")}
    for name, snapshot in document.snapshots.items():
        arrays[f"snapshots/{name}"] = np.asarray(run.stored.array(snapshot.array)[...])
    return arrays


def record_through(
    proxy: FaultyProxy, folder: str, undisturbed: dict[str, Any], n_runs: int
) -> None:
    for i in range(n_runs):
        location = f"{folder}/{i}/run.zarr"
        proxy.rate = 0.02
        train_resumed(location)
        proxy.rate = 0.0
        found = arrays_of(location)
        assert found.keys() == undisturbed.keys()
        for name, values in undisturbed.items():
            assert found[name].tobytes() == values.tobytes(), name


def test_faults_of_the_network_end_no_recording(
    proxy: FaultyProxy, bucket: str, undisturbed: dict[str, Any]
):
    record_through(proxy, f"{bucket}/faulty", undisturbed, IN_CI)


@pytest.mark.slow
@pytest.mark.parametrize("proxy", SEEDS, indirect=True)
def test_many_faults_of_the_network_end_no_recording(
    proxy: FaultyProxy,
    bucket: str,
    undisturbed: dict[str, Any],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)
    folder = f"{bucket}/{request.node.name}"
    record_through(proxy, folder, undisturbed, IN_THE_LONG_RUN)
    print(dict(proxy.counts))


def test_an_outage_is_waited_out(
    proxy: FaultyProxy, bucket: str, undisturbed: dict[str, Any]
):
    """Rows wait in memory, and training waits when two buffers are full."""
    location, training = f"{bucket}/outage/run.zarr", Training()
    with record(location, training) as recorder:
        training.run(recorder, range(4))
        proxy.faults, proxy.rate = ("reset", "503"), 1.0
        threading.Timer(3.0, setattr, (proxy, "rate", 0.0)).start()
        training.run(recorder, range(4, N_STEPS))
        recorder.snapshot("late")
    assert proxy.counts["reset"] > 0
    found = arrays_of(location)
    for name, values in undisturbed.items():
        assert found[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_a_lasting_outage_is_an_error(
    on_error: str, proxy: FaultyProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRAJSTORE_OUTAGE_SECONDS", "0.5")
    monkeypatch.setattr(lease, "OPENING_SECONDS", 0.1)
    location, training = f"{bucket}/lasting-{on_error}/run.zarr", Training()
    recorder = record(location, training, on_error=on_error)
    training.run(recorder, range(4))
    recorder.flush()
    proxy.faults, proxy.rate = ("reset",), 1.0
    if on_error == "raise":
        with pytest.raises(RuntimeError, match="committed earlier stays readable"):
            training.run(recorder, range(4, 40))
        with (
            pytest.raises(RuntimeError, match="does not answer"),
            pytest.warns(UserWarning, match="marked as free"),
        ):
            recorder.close()
    else:
        with pytest.warns(UserWarning, match=r"ended before step.*Training continues"):
            training.run(recorder, range(4, 40))
        with pytest.warns(UserWarning, match="marked as free"):
            recorder.close()
    proxy.rate = 0.0
    assert open_run(location).n_steps == 4


@pytest.mark.parametrize("key", [".writer", "run.zarr/zarr.json", "signs/c/0/0"])
def test_a_write_whose_answer_is_lost_is_recognised(
    key: str,
    proxy: FaultyProxy,
    bucket: str,
    undisturbed: dict[str, Any],
):
    location = f"{bucket}/{key.replace('/', '-')}/run.zarr"
    proxy.only, proxy.rate = key, 0.3
    proxy.faults = ("lost", "late", "500 after success")
    training = Training()
    with record(location, training) as recorder:
        training.run(recorder, range(N_STEPS))
        recorder.snapshot("late")
    assert sum(proxy.counts[fault] for fault in proxy.faults) > 0
    proxy.rate = 0.0
    found = arrays_of(location)
    for name, values in undisturbed.items():
        assert found[name].tobytes() == values.tobytes(), name
