"""Test that several processes may analyse one run at the same time."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import analyzers
import trajstore
from analyzers.geometry import stored as results
from trajstore.reading.results import is_being_written, results_location, results_lock

CHILD = """
import random, sys, dask, numpy as np, analyzers, trajstore
import analyzers.geometry.path_geometry
from pathlib import Path
sys.modules["analyzers.geometry.path_geometry"].RESULT_ROWS = (8, 8)
dask.config.set(num_workers=1)
folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
final = trajstore.parameters_at(trajstore.open_run(folder / "run.zarr"))
for _ in range(count):
    run = trajstore.open_run(folder / "run.zarr")
    name = rng.choice(["final", "epoch", "layers", "decay", "half", "double"])
    reference = {"epoch": 1, "half": {k: v / 2 for k, v in final.items()},
                 "double": {k: v * 2 for k, v in final.items()}}.get(name, "final")
    options = {"layers": name == "layers", "weight_decay": 0.1 * (name == "decay")}
    found = analyzers.store_geometry(run, reference=reference, **options)
    expected = folder / f"{name}.npy"
    values = np.stack([found[v].values for v in sorted(found.data_vars)])
    if not expected.exists():
        computed = analyzers.path_geometry(run, reference=reference, **options)
        np.save(expected, np.stack([computed[v].values for v in sorted(computed.data_vars)]))
    np.testing.assert_allclose(values, np.load(expected), rtol=1e-5, atol=1e-7)  # order of sums
    print(name)
"""


def start(folder: Path, seed: int, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CHILD, str(folder), str(seed), str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.slow
def test_a_hundred_parallel_analyses_with_kills_have_no_error(
    example_run: Path, tmp_path: Path
):
    """Four processes at a time; every fourth of them is killed at a random moment."""
    shutil.copytree(example_run, tmp_path / "run.zarr")
    _, errors = start(tmp_path, 1, 20).communicate(timeout=300)
    assert not errors
    shutil.rmtree(results_location(trajstore.open_run(tmp_path / "run.zarr")))
    rng = random.Random(0)
    finished = 0
    for batch in range(9):
        running = [start(tmp_path, 4 * batch + i, 4) for i in range(4)]
        time.sleep(rng.uniform(2, 6))
        running[0].kill()
        for process in running:
            out, errors = process.communicate(timeout=300)
            finished += len(out.splitlines())
            assert process.returncode == 0 or process is running[0], errors
    assert finished >= 100


def test_a_process_that_waited_computes_nothing(
    example_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The lock is held by another process while this one begins."""
    run = trajstore.open_run(shutil.copytree(example_run, tmp_path / "run.zarr"))
    location = results_location(run)
    expected = analyzers.store_geometry(run).compute()
    command = [sys.executable, "-c", HOLDER, location]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        assert is_being_written(location, "final")
        monkeypatch.setattr(results, "compute", None)
        found = analyzers.store_geometry(run)
        # The other process was killed inside the block.
        assert holder.wait() != 0
    assert not is_being_written(location, "final")
    np.testing.assert_array_equal(found.gamma, expected.gamma)


HOLDER = """
import os, sys, time
from trajstore.reading.results import results_lock
with results_lock(sys.argv[1], "final"):
    print("locked", flush=True)
    time.sleep(0.3)
    os._exit(1)
"""


def test_a_replaced_result_is_computed_when_it_is_read(
    example_run: Path, tmp_path: Path
):
    """Arrays given by the caller share a group; another process may use it meanwhile."""
    run = trajstore.open_run(shutil.copytree(example_run, tmp_path / "run.zarr"))
    final = trajstore.parameters_at(run)
    half, double = (
        {name: np.float32(factor) * values for name, values in final.items()}
        for factor in (0.5, 2)
    )
    first = analyzers.store_geometry(run, reference=half)
    analyzers.store_geometry(run, reference=double)
    expected = analyzers.path_geometry(run, reference=half)
    np.testing.assert_array_equal(first.gamma, expected.gamma)
    shutil.rmtree(results_location(run))
    np.testing.assert_array_equal(first.eb_stderr, expected.eb_stderr)


def test_a_directory_that_cannot_be_written_needs_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refused(*_: object, **__: object) -> None:
        raise PermissionError("by the test")

    monkeypatch.setattr("trajstore.reading.results.FileLock", refused)
    with results_lock(str(tmp_path / "run.analysis.zarr"), "final"):
        assert not is_being_written(str(tmp_path / "run.analysis.zarr"), "final")
