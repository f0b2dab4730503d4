"""Kill recordings at random moments: committed steps are kept and correct."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest

from analyzers.geometry.stored import store_geometry
from trajstore.reading.run import open_run
from trajstore.reading.verify import problems
from trajstore.store.journal import recover

pytest.importorskip("torch")

from tests.trajstore.recording.kills import (
    Array,
    Killer,
    check,
    contents,
    final,
    program,
    recovery,
)
from tests.trajstore.recording.warm_process import WarmProcess

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

IN_CI, IN_THE_LONG_RUN = 10, 70
"""Kills of each kind."""


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
    last = final(whole)
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
        assert final(path).tobytes() == last.tobytes()
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
