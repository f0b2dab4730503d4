"""Kill recordings at random moments: committed steps are kept and correct."""

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import pytest

from analyzers.geometry.stored import store_geometry
from trajstore.reading.run import open_run
from trajstore.reading.verify import problems
from trajstore.store.journal import recover

pytest.importorskip("torch")

from tests.trajstore.recording.warm_process import WarmProcess

Array = npt.NDArray[Any]

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "journal": {"journal": True},
    "synced": {"fsync": True},
    "synced journal": {"fsync": True, "journal": True},
    "updates": {"updates": True},
    "samples": {"samples": 3},
    "exact": {"exact": True},
    "no basis": {"basis": 0},
    "one row a flush": {"flush_rows": 1},
    "many rows": {"flush_rows": 20, "save_every": 13},
}
"""Options of recordings, by name."""

IN_CI, IN_THE_LONG_RUN = 10, 100
"""Kills of each kind."""


def program(path: Path, **options: Any) -> str:
    """Return a program that trains to the end, from the last checkpoint if there is one."""
    return (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path; from crash_training import train\n"
        f"train(Path({str(path)!r}), **{options!r})\n"
        # A regular exit of the interpreter takes longer than the training.
        "import os; os._exit(0)\n"
    )


def recovery(path: Path) -> str:
    """Return a program that recovers the journal of a store."""
    return (
        "from trajstore.store.journal import recover\n"
        f"recover({str(path)!r})\n"
        "import os; os._exit(0)\n"
    )


def analysis(path: Path) -> str:
    """Return a program that stores the geometry of a run next to it."""
    return (
        "import dask\n"
        "from trajstore.reading.run import open_run\n"
        "from analyzers.geometry.stored import store_geometry\n"
        "with dask.config.set(scheduler='sync'):\n"
        f"    store_geometry(open_run({str(path)!r}), reference='final')\n"
        "import os; os._exit(0)\n"
    )


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory if possible, because disks replace files slowly."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as path:
        yield Path(path)


def contents(path: Path) -> dict[str, Array]:
    """Read everything that a recording stores, except times of day and final iterates."""
    run = open_run(path)
    document = run.stored.document
    arrays = {
        name: np.asarray(run.stored.array(name)[...])
        for name in document.arrays
        if not name.endswith("scalars")
        and name != "final"
        and not name.startswith("snapshots/")
    }
    arrays["loss"] = run.steps["loss"].values if run.n_steps else np.zeros(0)
    for name, snapshot in document.snapshots.items():
        arrays[f"snapshots/{name}"] = np.asarray(run.stored.array(snapshot.array)[...])
    return arrays


def acknowledged(path: Path) -> int:
    """Return the number of steps that the store must hold according to the log."""
    log = path.with_suffix(".log")
    kept = 0
    for line in log.read_text().splitlines() if log.exists() else ():
        # A run that resumes from a checkpoint drops later steps.
        kept = int(line.split()[1])
    return kept


def check(path: Path, expected: dict[str, Array]) -> None:
    """Compare the store of a run that may have been killed with a run that was not."""
    kept = acknowledged(path)
    if not (path / "zarr.json").exists():
        assert kept == 0
        return
    run, found = open_run(path), contents(path)
    assert run.n_steps >= kept, f"{kept - run.n_steps} acknowledged steps were lost"
    for name, values in found.items():
        length = len(values)
        # The parser of the root document has checked the lengths of the other arrays.
        if "/" not in name:
            assert length == run.n_steps, name
        assert values.tobytes() == expected[name][:length].tobytes(), name
    assert [str(problem) for problem in problems(run, track=iter)] == []


class Killer:
    """Kills programs after random times, and counts the kills."""

    def __init__(self, warm_process: WarmProcess, seed: int) -> None:
        self._process = warm_process
        self.rng = random.Random(seed)
        self.seconds = 0.0  # time that the last complete program took
        self.n = 0

    def run(self, program: str, *, to_the_end: bool = False) -> int:
        """Run a program, and kill it unless it shall end; return its exit code."""
        start = time.monotonic()
        child = self._process.start(program)
        if not to_the_end:
            # Wait for the kill or the end, whichever is first.
            moment = start + self.rng.uniform(0, self.seconds)
            while time.monotonic() < moment and not self._process.has_finished():
                time.sleep(0.002)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        finished = self._process.finish()
        assert finished.code in {0, -signal.SIGKILL}, finished.errors
        self.n += finished.code != 0
        if finished.code == 0:
            self.seconds = time.monotonic() - start
        return finished.code


def kill_again_and_again(
    warm_process: WarmProcess, directory: Path, n_kills: int, kind: str
) -> None:
    """Kill `n_kills` training runs and recoveries, each after a random time."""
    killer, options = Killer(warm_process, n_kills + len(kind)), KINDS[kind]
    whole = directory / "whole.zarr"
    killer.run(program(whole, **options), to_the_end=True)
    recoverer = Killer(warm_process, n_kills)
    recoverer.seconds = killer.seconds / 2
    expected = contents(whole)
    final = np.asarray(open_run(whole).stored.array("final")[...])
    runs = 0
    while killer.n + recoverer.n < n_kills:
        path, code = directory / f"{runs}.zarr", 1
        runs += 1
        while code != 0:
            # After a few kills a run may finish.
            to_the_end = killer.n + recoverer.n >= min(runs * 6, n_kills)
            code = killer.run(program(path, **options), to_the_end=to_the_end)
            has_journal = (path / ".journal").exists()
            if has_journal and (path / "zarr.json").exists():
                if killer.rng.random() < 0.5:
                    has_journal = recoverer.run(recovery(path)) != 0
                if has_journal and killer.rng.random() < 0.5:
                    recover(path)
                    has_journal = False
            if not has_journal:
                check(path, expected)
        run = open_run(path)
        assert (run.status, run.snapshots) == (
            "complete",
            ("at 5", "at 17", "last"),
        )
        assert np.asarray(run.stored.array("final")[...]).tobytes() == final.tobytes()
        assert contents(path).keys() == expected.keys()
        assert not list(path.rglob("*.partial"))
        assert not (path / ".journal").exists()
    print(f"{kind}: {killer.n} kills of {runs} runs, {recoverer.n} of recoveries")


@pytest.mark.parametrize("journal", [False, True], ids=["plain", "journal"])
def test_kills_lose_nothing_that_was_acknowledged(
    warm_process: WarmProcess, journal: bool, directory: Path
):
    kind = "journal" if journal else "plain"
    kill_again_and_again(warm_process, directory, IN_CI, kind)


@pytest.mark.slow
@pytest.mark.kills
@pytest.mark.parametrize("kind", KINDS)
def test_many_kills_lose_nothing_that_was_acknowledged(
    warm_process: WarmProcess, kind: str, directory: Path
):
    kill_again_and_again(warm_process, directory, IN_THE_LONG_RUN, kind)


def kill_analyses(warm_process: WarmProcess, directory: Path, n_kills: int) -> None:
    """Kill analyses that store their results, until the results are complete."""
    path = directory / "run.zarr"
    finished = warm_process.run(program(path))
    assert finished.code == 0, finished.errors
    results, before = directory / "run.analysis.zarr", bytes_of(path)
    killer = Killer(warm_process, n_kills)
    killer.run(analysis(path), to_the_end=True)
    expected = geometry(path)
    runs = 0
    while killer.n < n_kills:
        shutil.rmtree(results)
        runs, code = runs + 1, 1
        while code != 0:
            to_the_end = killer.n >= min(runs * 6, n_kills)
            code = killer.run(analysis(path), to_the_end=to_the_end)
            if results.exists():
                # An unfinished result is completed or computed again, never taken as it is.
                assert list(problems(open_run(path), track=iter)) == []
        found = geometry(path)
        for name, values in expected.items():
            assert found[name].tobytes() == values.tobytes(), name
        assert bytes_of(path) == before
    print(f"analysis: {killer.n} kills of {runs} results")


def geometry(path: Path) -> dict[str, Array]:
    """Read the stored geometry of a run."""
    with dask.config.set(scheduler="sync"):
        result = store_geometry(open_run(path), reference="final").compute()
    return {str(name): values.values for name, values in result.items()}


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in directory.rglob("*") if f.is_file()}


@pytest.fixture
def warm_analysis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmProcess]:
    """A process that starts programs without importing the analyses again."""
    process = WarmProcess(
        tmp_path_factory.mktemp("warm-analysis"), "analyzers.geometry.stored"
    )
    yield process
    process.close()


def test_killed_analyses_leave_no_wrong_results(
    warm_analysis: WarmProcess, directory: Path
):
    kill_analyses(warm_analysis, directory, IN_CI // 2)


@pytest.mark.slow
@pytest.mark.kills
def test_many_killed_analyses_leave_no_wrong_results(
    warm_analysis: WarmProcess, directory: Path
):
    kill_analyses(warm_analysis, directory, IN_THE_LONG_RUN)
