"""Kill recordings in each of their phases, and recordings to object storage that stumbles."""

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trajstore.store.journal import recover

pytest.importorskip("torch")

from tests.faulty_proxy import FaultyProxy
from tests.trajstore.recording.kills import (
    PHASES,
    Array,
    Killer,
    check,
    contents,
    final,
    program,
)
from tests.trajstore.recording.warm_process import WarmProcess

KINDS: list[dict[str, Any]] = [
    {},
    {"journal": True},
    {"flush_rows": 1},
    {"updates": True, "fsync": True},
]
"""Options of recordings, which take turns."""

IN_CI, IN_THE_LONG_RUN = 1, 40
"""Kills of each phase."""

THROUGH_PROXY: dict[str, int] = {"quick": 2, "long": 50}
"""Kills of recordings to object storage."""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory if possible, because disks replace files slowly."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as path:
        yield Path(path)


def kill_in(
    phase: str, warm_process: WarmProcess, directory: Path, n_kills: int
) -> None:
    """Kill training runs in a phase, and resume them until they are complete."""
    killer, runs = Killer(warm_process, n_kills + len(phase)), 0
    wholes: dict[int, tuple[dict[str, Array], Array]] = {}
    while killer.n < n_kills:
        kind = runs % len(KINDS)
        options = KINDS[kind]
        if kind not in wholes:
            whole = directory / f"whole-{kind}.zarr"
            killer.run(program(whole, **options), to_the_end=True)
            wholes[kind] = contents(whole), final(whole)
        expected, last = wholes[kind]
        path, code, tries = directory / f"{runs}.zarr", 1, 0
        runs += 1
        while code != 0:
            # A store is resumed only if a run has been killed after it was opened.
            in_phase = phase if tries or phase != "resuming" else "closing"
            to_the_end = tries == 5 or killer.n >= n_kills
            code = killer.run(
                program(path, **options),
                to_the_end=to_the_end,
                phase=in_phase,
                phases=path.with_suffix(".phases"),
            )
            tries += 1
            if (path / "zarr.json").exists():
                if (path / ".journal").exists() and killer.rng.random() < 0.5:
                    recover(path)
                if not (path / ".journal").exists():
                    check(path, expected)
        assert final(path).tobytes() == last.tobytes()
        assert contents(path).keys() == expected.keys()
    print(f"{phase}: {killer.n} kills of {runs} runs")


@pytest.mark.parametrize("phase", PHASES)
def test_kills_in_a_phase_lose_nothing(
    phase: str, warm_process: WarmProcess, directory: Path
):
    kill_in(phase, warm_process, directory, IN_CI)


@pytest.mark.slow
@pytest.mark.kills
@pytest.mark.parametrize("phase", PHASES)
def test_many_kills_in_a_phase_lose_nothing(
    phase: str, warm_process: WarmProcess, directory: Path
):
    kill_in(phase, warm_process, directory, IN_THE_LONG_RUN)


def kill_through_proxy(
    warm_process: WarmProcess, directory: Path, bucket: str, n_kills: int
) -> None:
    """Kill recordings to object storage that stumbles, and resume them to their end."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    proxy = FaultyProxy(endpoint, rate=0.02, seed=n_kills)
    secrets = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
    environment = secrets | {"AWS_ENDPOINT_URL": proxy.url}
    killer, runs = Killer(warm_process, n_kills), 0
    whole = directory / "whole.zarr"
    killer.run(program(whole), to_the_end=True)
    expected, last = contents(whole), final(whole)
    folder = f"{bucket}/kills-{random.randrange(1 << 60)}"
    # The first run measures how long one takes.
    to_the_end = True
    while killer.n < n_kills or to_the_end:
        path, location = directory / f"{runs}.zarr", f"{folder}/{runs}.zarr"
        runs, code, tries = runs + 1, 1, 0
        while code != 0:
            code = killer.run(
                program(path, environment=environment, location=location),
                to_the_end=to_the_end or tries == 5 or killer.n >= n_kills,
            )
            tries += 1
            check(path, expected, location)
        to_the_end = False
        assert final(location).tobytes() == last.tobytes()
        assert contents(location).keys() == expected.keys()
    proxy.close()
    print(f"object storage: {killer.n} kills of {runs} runs, {dict(proxy.counts)}")


def test_kills_behind_a_faulty_proxy_lose_nothing(
    warm_process: WarmProcess, directory: Path, bucket: str
):
    kill_through_proxy(warm_process, directory, bucket, THROUGH_PROXY["quick"])


@pytest.mark.slow
@pytest.mark.kills
def test_many_kills_behind_a_faulty_proxy_lose_nothing(
    warm_process: WarmProcess, directory: Path, bucket: str
):
    kill_through_proxy(warm_process, directory, bucket, THROUGH_PROXY["long"])
