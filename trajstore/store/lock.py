"""Allow only one writer for each store.

In a directory, the writer holds a lock on the file `LOCK`. The operating system releases
the lock when the process ends, even after a crash. Object storage has no locks; there, the
document `WRITER` is a lease. The writer creates it, renews it with every commit, and may be
replaced `LEASE_SECONDS` after the last renewal. A writer creates and renews its lease with
conditional puts, so only one of two rivals succeeds. fsspec has no conditional puts, so two
rivals that start at the same instant are not detected.

In every store, `WRITER` names the writer. A writer whose document is deleted or replaced
stops writing.
"""

import json
import os
import socket
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from filelock import FileLock, Timeout
from zarr.abc.buffer import Buffer
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import ObjectStore

from trajstore.store.location import inside, is_remote

PROTOTYPE: Final = default_buffer_prototype()

LOCK: Final = ".lock"
"""File in a local store that its writer locks."""

WRITER: Final = ".writer"
"""Document that names the writer of a store, while it has one."""

LEASE_SECONDS: Final = 600
"""Time without a renewal after which another writer may take over a lease."""

LOCK_TIMEOUT: Final = 1.0  # seconds


class StoreLockedError(RuntimeError):
    """Another process writes the store or has taken it over."""


class WriterLock:
    """The exclusive right to write a store."""

    def __init__(self, location: str, store: Store) -> None:
        self._location, self._store = location, store
        for name in () if is_remote(location) else (LOCK, WRITER):
            inside(location, name)
        self._holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "token": uuid4().hex,
        }
        # The thread that closes the recorder releases the lock; it can be any thread.
        self._file = (
            None
            if is_remote(location)
            else FileLock(Path(location) / LOCK, thread_local=False)
        )
        self._e_tag: str | None = None

    async def acquire(self) -> None:
        """Become the writer; a StoreLockedError names the current writer."""
        if isinstance(self._store, ObjectStore):
            await self._acquire_lease(self._store)
            return
        if self._file is not None:
            try:
                # A reader may hold the lock for an instant, to test it.
                self._file.acquire(timeout=LOCK_TIMEOUT)
            except Timeout:
                raise StoreLockedError(await self._refusal()) from None
        elif await _has_lease(self._store):
            raise StoreLockedError(await self._refusal())
        await self._store.set(WRITER, self._document())

    async def confirm(self) -> None:
        """Renew a lease; raise StoreLockedError if the store was deleted or taken over."""
        if isinstance(self._store, ObjectStore):
            await self._renew_lease(self._store)
        elif not await self._is_mine():
            raise StoreLockedError(self._loss())
        elif self._file is None:
            await self._store.set(WRITER, self._document())

    async def release(self) -> None:
        """Let other processes write; leave a store alone that was taken over."""
        try:
            if await self._is_mine():
                await self._store.delete(WRITER)
                if self._file is not None:
                    # Waiting writers notice that the file was deleted while it was locked.
                    await self._store.delete(LOCK)
        finally:
            if self._file is not None:
                self._file.release()

    async def _acquire_lease(self, store: ObjectStore[Any]) -> None:
        obstore = import_module("obstore")
        try:
            self._e_tag = await self._put(store, mode="create")
        except obstore.exceptions.AlreadyExistsError:
            found = await obstore.head_async(store.store, WRITER)
            if _is_recent(found["last_modified"]):
                raise StoreLockedError(await self._refusal()) from None
            try:
                self._e_tag = await self._put(store, mode={"e_tag": found["e_tag"]})
            except obstore.exceptions.PreconditionError:
                raise StoreLockedError(await self._refusal()) from None

    async def _renew_lease(self, store: ObjectStore[Any]) -> None:
        errors = import_module("obstore.exceptions")
        try:
            self._e_tag = await self._put(store, mode={"e_tag": self._e_tag})
        except (errors.PreconditionError, FileNotFoundError):
            raise StoreLockedError(self._loss()) from None

    async def _put(self, store: ObjectStore[Any], *, mode: Any) -> str:
        obstore = import_module("obstore")
        document = self._document().to_bytes()
        result = await obstore.put_async(store.store, WRITER, document, mode=mode)
        e_tag: str = result["e_tag"]
        return e_tag

    def _document(self) -> Buffer:
        now = datetime.now(UTC).isoformat()
        text = json.dumps(self._holder | {"renewed": now})
        return PROTOTYPE.buffer.from_bytes(text.encode())

    async def _is_mine(self) -> bool:
        return (await _read_holder(self._store)).get("token") == self._holder["token"]

    async def _refusal(self) -> str:
        holder = await _read_holder(self._store)
        who = ", ".join(
            f"{key} {holder[key]}" for key in ("host", "pid") if key in holder
        )
        since = f" since {holder['since']}" if "since" in holder else ""
        wait = (
            f" If it has crashed, wait: the store is free {LEASE_SECONDS // 60} minutes "
            "after its last commit."
        )
        return (
            f"{self._location} is being written by {who or 'another process'}{since}. "
            f"End that process, or choose another path.{wait if self._file is None else ''}"
        )

    def _loss(self) -> str:
        return (
            f"{self._location} was deleted, or taken over by another writer, while it was "
            "being recorded. Nothing more is written to it."
        )


def is_written(location: str, store: Store) -> bool:
    """Whether a process holds the store's lock or, where there are no locks, a valid lease."""
    if is_remote(location):
        return sync(_has_lease(store))
    path = Path(location) / LOCK
    # Locking through a link would open, or create, a file elsewhere.
    if path.is_symlink() or not path.is_file():
        return False
    try:
        # Another reader holds the lock for an instant only; a writer keeps it.
        with FileLock(path, timeout=0.2, poll_interval=0.02):
            return False
    except (Timeout, PermissionError):
        return True


async def _has_lease(store: Store) -> bool:
    """Whether a store has a lease that has not expired."""
    if isinstance(store, ObjectStore):
        # The storage dates the renewal, so the writer's clock does not matter.
        try:
            found = await import_module("obstore").head_async(store.store, WRITER)
        except FileNotFoundError:
            return False
        return _is_recent(found["last_modified"])
    try:
        renewed = datetime.fromisoformat((await _read_holder(store))["renewed"])
        return _is_recent(renewed)
    except (KeyError, TypeError, ValueError):
        return False


def _is_recent(renewed: datetime) -> bool:
    return (datetime.now(UTC) - renewed).total_seconds() < LEASE_SECONDS


async def _read_holder(store: Store) -> dict[str, Any]:
    """Return the document that names the writer, empty if missing or damaged."""
    document = await store.get(WRITER, PROTOTYPE)
    try:
        holder = json.loads(document.to_bytes()) if document is not None else {}
    except ValueError:
        holder = {}
    return holder if isinstance(holder, dict) else {}
