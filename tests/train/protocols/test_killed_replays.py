"""Kill replays of batches, and the writing of their losses: no torn result is taken as whole."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from analyzers.geometry.losses import replayed
from tests.trajstore.recording.kills import Killer
from tests.trajstore.recording.warm_process import WarmProcess
from train.protocols.record import record
from train.workloads.catalogue import WORKLOADS
from trajstore.reading.results import results_location
from trajstore.reading.run import Run, open_run
from trajstore.reading.verify import problems

IN_CI, IN_THE_LONG_RUN = 4, 60


def program(path: Path) -> str:
    """Return a program that replays a run, and notes when it writes the losses."""
    return (
        "import os, time\n"
        "from train.protocols.replay import replay\n"
        "from trajstore.reading.results import replay_group, write_results\n"
        "from trajstore.reading.run import open_run\n"
        "from trajstore.reading.target import find_target\n"
        f"run = open_run({str(path)!r})\n"
        "losses = replay(run)\n"
        f"with open({str(path.with_suffix('.phases'))!r}, 'ab', buffering=0) as file:\n"
        "    file.write(b'writing %.6f\\n' % time.monotonic())\n"
        "    write_results(run, replay_group(find_target(run, 'final')), losses)\n"
        "    file.write(b'end %.6f\\n' % time.monotonic())\n"
        "os._exit(0)\n"
    )


def losses(run: Run) -> Any | None:
    """Return the stored losses, or None if reading them is refused with advice."""
    try:
        return replayed(run)["reference_loss"].values
    except ValueError as error:
        if "traj-train replay" not in str(error):
            raise
        return None


@pytest.fixture(scope="module")
def warm_replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmProcess]:
    """A process that starts programs without importing replays again."""
    modules = ("train.protocols.replay", "sklearn.datasets", "zarr", "xarray")
    process = WarmProcess(tmp_path_factory.mktemp("warm-replay"), *modules)
    yield process
    process.close()


def kill_replays(warm_process: WarmProcess, path: Path, n_kills: int) -> None:
    settings = {"epochs": 2, "width": 8, "batch_size": 200, "record_samples": True}
    training = replace(WORKLOADS["digits-mlp"].settings, **settings)  # type: ignore[arg-type]
    record(training, path, sketch_bits=64, probes=16)
    run = open_run(path)
    assert losses(run) is None
    killer, runs = Killer(warm_process, n_kills), 0
    killer.run(program(path), to_the_end=True)
    expected: Any = losses(run)
    while killer.n < n_kills:
        if runs % 2:
            shutil.rmtree(results_location(run))
        runs, code = runs + 1, 1
        while code != 0:
            is_writing = killer.rng.random() < 0.7
            code = killer.run(
                program(path),
                to_the_end=killer.n >= min(runs * 6, n_kills),
                phase="writing",
                phases=path.with_suffix(".phases") if is_writing else None,
            )
            found = losses(open_run(path))
            assert found is None or found.tobytes() == expected.tobytes()
            assert [str(p) for p in problems(open_run(path), track=iter)] == []
        np.testing.assert_array_equal(losses(open_run(path)), expected)
    print(f"replays: {killer.n} kills of {runs} results")


def test_killed_replays_leave_no_wrong_losses(warm_replay: WarmProcess, tmp_path: Path):
    kill_replays(warm_replay, tmp_path / "run.zarr", IN_CI)


@pytest.mark.slow
@pytest.mark.kills
def test_many_killed_replays_leave_no_wrong_losses(
    warm_replay: WarmProcess, tmp_path: Path
):
    kill_replays(warm_replay, tmp_path / "run.zarr", IN_THE_LONG_RUN)
