"""Test ``analyzers._execution.cluster``, and analyses on worker processes."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import xarray as xr

import analyzers
import trajstore
from analyzers import cli
from analyzers._execution.cluster import connected
from analyzers._execution.progress import current_client
from analyzers.geometry import stored as results
from trajstore.reading.results import results_location
from trajstore.reading.run import Run

distributed = pytest.importorskip("distributed")


@pytest.fixture
def run(example_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of the example run whose results have 30 chunks."""
    module = sys.modules["analyzers.geometry.path_geometry"]
    monkeypatch.setattr(module, "RESULT_ROWS", (2, 2))
    return trajstore.open_run(shutil.copytree(example_run, tmp_path / "run.zarr"))


def test_no_cluster_is_started_by_default():
    with connected() as client:
        assert client is None
        assert current_client() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "tcp://a:1", "workers": 2}, r"`workers` \(2\).*'tcp://a:1'"),
        ({"report": Path("r.html")}, "A report needs a cluster.*Give workers"),
    ],
    ids=["both", "report"],
)
def test_options_that_exclude_each_other_are_refused(options: Any, message: str):
    with pytest.raises(ValueError, match=message), connected(**options):
        pass


@pytest.mark.slow
def test_killed_worker_costs_nothing_but_time(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    report = tmp_path / "report.html"
    expected = analyzers.path_geometry(run).compute()
    location, killed = results_location(run), []

    def kill_one(client: Any) -> None:
        """Kill a worker as soon as some of the chunks are done."""
        while n_done(location) == 0:
            time.sleep(0.01)
        [victim, *_] = client.run(os.getpid).values()
        os.kill(victim, signal.SIGKILL)
        killed.append(n_done(location))

    with connected(workers=2, report=report) as client:
        assert current_client() is client
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        # The variable is set before the workers start, because the C library reads it once.
        kept = client.run(os.environ.get, "MALLOC_TRIM_THRESHOLD_").values()
        assert set(kept) == {str(1 << 28)}
        killer = Thread(target=kill_one, args=(client,))
        killer.start()
        stored = analyzers.store_geometry(run)
        killer.join()
    # The worker was killed when some chunks, but not all, were done.
    assert 0 < killed[0] < 30
    xr.testing.assert_identical(stored.compute(), expected)
    assert "Dask Performance Report" in report.read_text()


def test_command_uses_the_given_scheduler(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with distributed.LocalCluster(
        n_workers=1,
        processes=False,
        host="127.0.0.1",
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        address = cluster.scheduler_address
        arguments = ["geometry", str(run.location), "--scheduler", address]
        monkeypatch.setattr(sys, "argv", ["traj-analyze", *arguments])
        cli.main()
        n_tasks = len(cluster.scheduler.computations)
    printed = capsys.readouterr().err
    assert f"Dashboard: {cluster.dashboard_link}" in printed
    assert n_tasks == 1
    assert n_done(results_location(run)) == 30


def n_done(location: str) -> int:
    files = Path(location, "final", results.DONE, "c")
    return len(list(files.glob("*"))) if files.exists() else 0
