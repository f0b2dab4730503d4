"""Kill programs at random moments, and compare what they leave with a run that was not killed."""

import os
import random
import signal
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tests.trajstore.recording.warm_process import WarmProcess
from trajstore.reading.run import Run, open_run
from trajstore.reading.verify import problems

Array = npt.NDArray[Any]

PHASES = ("opening", "resuming", "state", "snapshot", "measuring", "closing")
"""Phases of `crash_training.train`, whose moments are noted in a file."""


def program(
    path: Path, *, environment: dict[str, str] | None = None, **options: Any
) -> str:
    """Return a program that trains to the end, from the last checkpoint if there is one."""
    return (
        f"import os; os.environ |= {environment or {}!r}\n"
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path; from crash_training import train\n"
        f"train(Path({str(path)!r}), **{options!r})\n"
        # A regular exit of the interpreter takes longer than the training.
        "os._exit(0)\n"
    )


def recovery(path: Path) -> str:
    """Return a program that recovers the journal of a store."""
    return (
        "from trajstore.store.journal import recover\n"
        f"recover({str(path)!r})\n"
        "import os; os._exit(0)\n"
    )


def contents(location: Path | str) -> dict[str, Array]:
    """Read everything that a recording stores, except times of day and final iterates."""
    run = open_run(location)
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


def final(location: Path | str) -> Array:
    """Return the last iterate of a run that is complete."""
    run = open_run(location)
    assert (run.status, run.snapshots) == ("complete", ("at 5", "at 17", "last"))
    return np.asarray(run.stored.array("final")[...])


def acknowledged(path: Path) -> int:
    """Return the number of steps that the store must hold according to the log."""
    log = path.with_suffix(".log")
    kept = 0
    for line in log.read_text().splitlines() if log.exists() else ():
        # A run that resumes from a checkpoint drops later steps.
        kept = int(line.split()[1])
    return kept


def check(path: Path, expected: dict[str, Array], location: str | None = None) -> None:
    """Compare the store of a run that may have been killed with a run that was not."""
    kept = acknowledged(path)
    if location is None and not (path / "zarr.json").exists():
        assert kept == 0
        return
    try:
        run = open_run(location or path)
    except FileNotFoundError:
        assert kept == 0
        return
    assert run.n_steps >= kept, f"{kept - run.n_steps} acknowledged steps were lost"
    check_prefix(run, contents(location or path), expected)
    assert [str(problem) for problem in problems(run, track=iter)] == []


def check_prefix(run: Run, found: dict[str, Array], expected: dict[str, Array]) -> None:
    """Compare the first rows with those of a run that was not killed."""
    for name, values in found.items():
        length = len(values)
        # The parser of the root document has checked the lengths of the other arrays.
        if "/" not in name:
            assert length == run.n_steps, name
        assert values.tobytes() == expected[name][:length].tobytes(), name


class Killer:
    """Kills programs after random times, and counts the kills."""

    def __init__(self, warm_process: WarmProcess, seed: int) -> None:
        self._process = warm_process
        self.rng = random.Random(seed)
        self.seconds = 0.0  # time that the last complete program took
        self.n = 0

    def run(
        self,
        program: str,
        *,
        to_the_end: bool = False,
        phase: str = "",
        phases: Path | None = None,
    ) -> int:
        """Run a program, and kill it unless it shall end; return its exit code.

        The moment of the kill is a random one of the whole program, or, if `phase` is given, of
        one of the phases of this name that the program notes in the file `phases`.
        """
        start = time.monotonic()
        noted = Noted(phases) if phases is not None else None
        child = self._process.start(program)
        if not to_the_end:
            moment = start + self.rng.uniform(0, self.seconds)
            if noted is not None:
                moment = self._moment_in(noted, phase)
            # Wait for the kill or the end, whichever is first.
            while time.monotonic() < moment and not self._process.has_finished():
                time.sleep(0.001)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        finished = self._process.finish()
        assert finished.code in {0, -signal.SIGKILL}, finished.errors
        self.n += finished.code != 0
        if finished.code == 0:
            self.seconds = time.monotonic() - start
        return finished.code

    def _moment_in(self, noted: "Noted", phase: str) -> float:
        """Wait for a phase, and return a random moment in it, or later if it has ended."""
        which = self.rng.randrange(
            1 if phase in {"opening", "resuming", "closing"} else 3
        )
        while not self._process.has_finished():
            begun = noted.moments(phase)
            if len(begun) > which:
                return begun[which] + self.rng.uniform(
                    0, noted.lengths.get(phase, 0.02)
                )
            time.sleep(0.0005)
        return 0.0


class Noted:
    """The phases that a program notes in a file, after those that are in it already."""

    lengths: ClassVar[dict[str, float]] = {}
    """Seconds that a phase took at most, by name, in all programs so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = path.stat().st_size if path.exists() else 0

    def moments(self, phase: str) -> list[float]:
        """Return the moments at which phases of a name have begun."""
        if not self._path.exists():
            return []
        with self._path.open() as file:
            file.seek(self._before)
            lines = [
                line.split()
                for line in file.read().splitlines(keepends=True)
                if line[-1] == "\n"
            ]
        for (name, start), (_, end) in pairwise(lines):
            if name != "end":
                length = float(end) - float(start)
                self.lengths[name] = max(length, self.lengths.get(name, 0.0))
        return [float(start) for name, start in lines if name == phase]
