"""Kill recordings at random moments: committed steps are kept and correct."""

import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trajstore.reading.run import open_run
from trajstore.store.journal import recover

pytest.importorskip("torch")

from tests.trajstore.recording.warm_process import WarmProcess

Array = npt.NDArray[Any]

IN_CI, IN_THE_LONG_RUN = 20, 200


def program(path: Path, **options: Any) -> str:
    """Return a program that trains to the end, from the last checkpoint if there is one."""
    return (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path; from crash_training import train\n"
        f"train(Path({str(path)!r}), **{options!r})\n"
        # A regular exit of the interpreter takes longer than the training.
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


@pytest.fixture(scope="module")
def uninterrupted(
    warm_process: WarmProcess, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Array]:
    """Contents of a run that was not killed."""
    path = tmp_path_factory.mktemp("whole") / "run.zarr"
    assert warm_process.run(program(path)).code == 0
    return contents(path)


def contents(path: Path) -> dict[str, Array]:
    """Read everything that a recording stores, except times of day."""
    run = open_run(path)
    arrays = {
        name: np.asarray(run.stored.array(name)[...])
        for name in (
            *("epoch", "iteration", "window", "tables", "signs", "scales"),
            *("gradient_probes", "displacement_probes", "probe_scales"),
        )
    }
    arrays["loss"] = run.steps["loss"].values if run.n_steps else np.zeros(0)
    for name in ("start", "codes", "scales", "weights", "arrival", "probes"):
        arrays[f"references/{name}"] = np.asarray(
            run.stored.array(f"references/{name}")[...]
        )
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
    found, n = contents(path), open_run(path).n_steps
    assert n >= kept, f"{kept - n} acknowledged steps were lost"
    n_windows = len(found["references/start"])
    for name, values in found.items():
        length = n_windows if name.startswith("references/") else n
        assert len(values) == length, name
        assert values.tobytes() == expected[name][:length].tobytes(), name


def kill_again_and_again(
    warm_process: WarmProcess,
    directory: Path,
    uninterrupted: dict[str, Array],
    n_kills: int,
    *,
    journal: bool,
) -> None:
    """Kill `n_kills` training runs, each after a random time."""
    start = time.monotonic()
    whole = program(directory / "whole.zarr", journal=journal)
    assert warm_process.run(whole).code == 0
    seconds = time.monotonic() - start
    rng = random.Random(n_kills + journal)
    kills = runs = 0
    while kills < n_kills:
        path, code = directory / f"{runs}.zarr", 1
        runs += 1
        while code != 0:
            child = warm_process.start(program(path, journal=journal))
            # After a few kills a run may finish.
            if kills < runs * 6:
                time.sleep(rng.uniform(0, seconds))
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            code = warm_process.finish().code
            assert code in {0, -signal.SIGKILL}
            kills += code != 0
            has_journal = (path / ".journal").exists()
            if has_journal and (path / "zarr.json").exists() and rng.random() < 0.5:
                recover(path)
                has_journal = False
            if not has_journal:
                check(path, uninterrupted)
        assert open_run(path).status == "complete"
        assert not list(path.rglob("*.partial"))
        assert not (path / ".journal").exists()


@pytest.mark.parametrize("journal", [False, True], ids=["plain", "journal"])
def test_kills_lose_nothing_that_was_acknowledged(
    warm_process: WarmProcess,
    uninterrupted: dict[str, Array],
    journal: bool,
    directory: Path,
):
    kill_again_and_again(
        warm_process, directory, uninterrupted, IN_CI // 2, journal=journal
    )


@pytest.mark.slow
@pytest.mark.parametrize("journal", [False, True], ids=["plain", "journal"])
def test_many_kills_lose_nothing_that_was_acknowledged(
    warm_process: WarmProcess,
    uninterrupted: dict[str, Array],
    journal: bool,
    directory: Path,
):
    kill_again_and_again(
        warm_process, directory, uninterrupted, IN_THE_LONG_RUN, journal=journal
    )
