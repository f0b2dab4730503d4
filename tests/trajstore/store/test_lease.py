"""Leases in object storage: delayed writers, rivals, wrong clocks and lost answers."""

import asyncio
import logging
import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trajstore.handmade import SPEC, random_rows, random_window
from trajstore.reading.run import Run, open_run
from trajstore.store import deletion, lease, lock, opening, writer
from trajstore.store.fenced import FencedStore
from trajstore.store.holder import StoreLockedError, let_go
from trajstore.store.lease import CLOCK, LEASE_SECONDS
from trajstore.store.patience import (
    StorageError,
    is_passing,
    outage_seconds,
    patiently,
)
from trajstore.store.writer import Writer

obstore = pytest.importorskip("obstore")

URL = "s3://bucket/run.zarr"

N_DELAYED, IN_THE_LONG_RUN = 12, 50


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket in memory, which every new store uses."""
    memory = obstore.store.MemoryStore()
    for module in (writer, opening, lock, deletion):
        monkeypatch.setattr(module, "open_store", lambda *_, **__: FencedStore(memory))
    return memory


def contents(bucket: Any) -> dict[str, bytes]:
    objects = [found for page in bucket.list() for found in page]
    return {o["path"]: bytes(bucket.get(o["path"]).bytes()) for o in objects}


class Recording:
    """A writer that appends random rows and windows."""

    def __init__(self, *, resume: bool = False, keep: int | None = None) -> None:
        self.writer = Writer(URL, SPEC, resume=resume)
        if keep is not None:
            self.writer.rewind(keep, snapshots=(), measured={})
            self.writer.commit()

    def append(self, n: int, *, salt: int = 0) -> None:
        first = self.writer.n_steps
        for step in range(first, first + n):
            self.writer.append_window(random_window(step))
            rows = random_rows(step + 1000 * salt, 1)
            rows |= {
                name: random_rows(step, 1)[name]
                for name in ("epoch", "iteration", "window")
            }
            self.writer.steps.append(rows, [{"loss": float(step + 1000 * salt)}])
        self.writer.commit()


@pytest.fixture
def expired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every lease expire at once."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0)


class Delay:
    """Do something before, or after, the n-th request of a store that writes."""

    def __init__(
        self, store: FencedStore, n: int, act: Callable[[], None], *, after: bool
    ) -> None:
        self._put, self._n, self._act, self._after = store._put, n, act, after
        store._put = self.put  # type: ignore[method-assign, assignment]

    async def put(self, *arguments: Any) -> Any:
        self._n -= 1
        if self._n == 0 and not self._after:
            self._elsewhere()
        result = await self._put(*arguments)
        if self._n == 0 and self._after:
            self._elsewhere()
        return result

    def _elsewhere(self) -> None:
        with ThreadPoolExecutor(1) as other:
            other.submit(self._act).result()


def check_a_delayed_writer(bucket: Any, seed: int) -> bool:
    """Suspend a commit at a random request until a successor has recorded; return if it failed."""
    rng = random.Random(seed)
    former = Recording()
    former.append(rng.randrange(1, 6))
    acknowledged = former.writer.n_steps
    keep = rng.randrange(acknowledged + 1) if rng.random() < 0.5 else None
    n_late, n_new, after = rng.randrange(1, 5), rng.randrange(1, 5), rng.random() < 0.5
    is_open = rng.random() < 0.5
    seen: list[Any] = []

    def take_over() -> None:
        successor = Recording(resume=True, keep=keep)
        visible = open_run(URL).steps["loss"].values.tolist()
        assert visible[:acknowledged] == list(range(acknowledged))[: len(visible)]
        assert len(visible) >= (acknowledged if keep is None else keep)
        successor.append(n_new, salt=1)
        seen.extend([successor, visible])
        if not is_open:
            successor.writer.close()
        seen.append(contents(bucket))

    store: Any = former.writer._store
    Delay(store, rng.randrange(1, 40), take_over, after=after)
    has_failed = False
    try:
        former.append(n_late, salt=2)
    except StoreLockedError:
        has_failed = True
    if not seen:
        assert not has_failed
        former.writer.close()
        return False
    # A writer that has lost its store may try again and again.
    with pytest.raises(StoreLockedError, match="taken over"):
        former.append(1, salt=2)
    former.writer.close()
    successor, visible, before = seen
    if not has_failed and keep is None:
        # The commit was complete when the successor took over.
        assert len(visible) == acknowledged + n_late
    if is_open:
        successor.append(2, salt=1)
        successor.writer.close()
    else:
        assert before.items() <= contents(bucket).items()
    n_new += 2 if is_open else 0
    first = len(visible)
    check_rows(open_run(URL), visible + [first + 1000 + i for i in range(n_new)])
    return True


def check_rows(run: Run, losses: list[float]) -> None:
    assert run.steps["loss"].values.tolist() == losses
    tables = np.concatenate([random_rows(int(s), 1)["tables"] for s in losses])
    np.testing.assert_array_equal(run.stored.array("tables")[...], tables)


@pytest.mark.parametrize("seed", range(N_DELAYED))
def test_a_commit_that_outlives_its_lease_changes_nothing(
    seed: int, bucket: Any, expired: None
):
    check_a_delayed_writer(bucket, seed)


@pytest.mark.slow
def test_many_commits_that_outlive_their_lease_change_nothing(
    monkeypatch: pytest.MonkeyPatch, expired: None
):
    n_delayed = 0
    for seed in range(100, 400):
        memory = obstore.store.MemoryStore()
        for module in (writer, opening, lock, deletion):
            monkeypatch.setattr(
                module, "open_store", lambda *_, m=memory, **__: FencedStore(m)
            )
        n_delayed += check_a_delayed_writer(memory, seed)
        if n_delayed == IN_THE_LONG_RUN:
            return
    raise AssertionError(n_delayed)


def test_a_delayed_release_leaves_the_successor_alone(bucket: Any, expired: None):
    former = Recording()
    former.append(1)
    successor = Recording(resume=True)
    before = contents(bucket)
    former.writer.close()
    assert contents(bucket) == before
    successor.append(1)
    successor.writer.close()


def test_a_released_store_is_free_at_once(bucket: Any):
    Recording().writer.close()
    assert lock.is_written(URL) is False
    recording = Recording(resume=True)
    assert lock.is_written(URL) is True
    recording.writer.close()


def test_a_process_retakes_a_lease_that_it_could_not_release(bucket: Any):
    """Ctrl-C may come at any moment, and the storage may fail at that moment."""
    abandoned = Recording()
    with pytest.raises(StoreLockedError, match="in 10 minutes"):
        Recording(resume=True)
    lost: Any = abandoned.writer._lock
    let_go(lost._holder)
    Recording(resume=True).writer.close()
    with pytest.raises(StoreLockedError, match="taken over"):
        abandoned.append(1)
    abandoned.writer.close()


@pytest.mark.parametrize("minutes", [-11, 11, 10_000])
def test_the_clock_of_a_rival_does_not_matter(
    minutes: int, bucket: Any, monkeypatch: pytest.MonkeyPatch
):
    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(minutes=minutes)

    holder = Recording()
    monkeypatch.setattr(lease, "datetime", Wrong)
    with pytest.raises(StoreLockedError, match="the store is free 10 minutes after"):
        Recording(resume=True)
    assert CLOCK not in contents(bucket)
    holder.append(1)
    holder.writer.close()


@pytest.mark.parametrize("age", [LEASE_SECONDS - 60, LEASE_SECONDS + 1])
def test_a_lease_expires_by_the_clock_of_the_storage(
    age: int, bucket: Any, monkeypatch: pytest.MonkeyPatch
):
    find = FencedStore.find

    async def find_later(self: FencedStore, key: str, *, at_most: int = 0) -> Any:
        found = await find(self, key, at_most=at_most)
        if found is not None and key == CLOCK:
            return found._replace(modified=found.modified + timedelta(seconds=age))
        return found

    monkeypatch.setattr(FencedStore, "find", find_later)
    holder = Recording()
    if age < LEASE_SECONDS:
        with pytest.raises(StoreLockedError, match="in 1 minutes"):
            Recording(resume=True)
    else:
        Recording(resume=True).writer.close()
    holder.writer.close()


def test_leftovers_of_a_killed_writer_are_replaced(bucket: Any, tmp_path: Path):
    """A writer that was killed in a commit leaves chunks that the root document lacks."""
    killed = Recording()
    killed.append(3)
    root = contents(bucket)["zarr.json"]
    killed.append(2, salt=2)
    bucket.put("zarr.json", root)
    lost: Any = killed.writer._lock
    let_go(lost._holder)
    killed.writer._loop.close()
    resumed = Recording(resume=True)
    assert resumed.writer.n_steps == 3
    resumed.append(2)
    resumed.writer.close()
    check_rows(open_run(URL), [0, 1, 2, 3, 4])


# Requests


def test_passing_errors_are_waited_for(caplog: pytest.LogCaptureFixture):
    calls = []

    async def fails_twice() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionResetError
        return 7

    with caplog.at_level(logging.WARNING, "trajstore"):
        assert asyncio.run(patiently(fails_twice, seconds=5)) == 7
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("The storage does not answer (")
    assert re.fullmatch(r"Still waiting, \d seconds more\.", second)

    async def fails() -> None:
        calls.append(1)
        raise obstore.exceptions.GenericError("connection reset")

    calls.clear()
    with pytest.raises(StorageError, match="storage failed: connection reset"):
        asyncio.run(patiently(fails, seconds=0.5))
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (obstore.exceptions.GenericError("status code: 503 Slow"), True),
        (obstore.exceptions.GenericError("status code: 429 Too Many"), True),
        (obstore.exceptions.GenericError("status code: 400 Bad Request"), False),
        (obstore.exceptions.GenericError("error sending request"), True),
        (obstore.exceptions.PermissionDeniedError("status code: 403"), False),
        (FileNotFoundError(2, "no such bucket"), False),
        (TimeoutError(), True),
        (ValueError(), False),
    ],
)
def test_refusals_are_not_repeated(error: Exception, expected: bool):
    assert is_passing(error) is expected


def test_the_longest_outage_is_set_in_the_environment(monkeypatch: pytest.MonkeyPatch):
    assert outage_seconds() == 600
    for text, seconds in (("0", 0), ("45.5", 45.5), ("", 600)):
        monkeypatch.setenv("TRAJSTORE_OUTAGE_SECONDS", text)
        assert outage_seconds() == seconds
    for text in ("-1", "inf", "nan", "soon"):
        monkeypatch.setenv("TRAJSTORE_OUTAGE_SECONDS", text)
        with pytest.raises(ValueError, match="0 or more, got " + repr(text)):
            outage_seconds()
