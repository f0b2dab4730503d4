"""Allow only one writer for each store.

In a directory, the writer holds a lock on the file `LOCK`. The operating system releases
the lock when the process ends, even after a crash. Remote storage has no locks; there, the
writer holds a lease (`lease`).

In every store, the document `WRITER` names the writer. A writer whose lock file or document
is deleted or replaced stops writing.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from filelock import FileLock, Timeout
from zarr.abc.store import Store
from zarr.core.sync import sync

from trajstore.store.fenced import FencedStore
from trajstore.store.holder import (
    PROTOTYPE,
    WRITER,
    StoreLockedError,
    describe,
    hold,
    holder_document,
    is_running,
    let_go,
    new_holder,
    read_holder,
)
from trajstore.store.lease import (
    LEASE_SECONDS,
    Lease,
    UnconditionalLease,
    has_lease,
    loss,
)
from trajstore.store.location import (
    DirectoryStore,
    OutsideStoreError,
    inside,
    is_remote,
    open_store,
)

if sys.platform != "win32":
    import fcntl

__all__ = [
    "LEASE_SECONDS",
    "LOCK",
    "PROTOTYPE",
    "WRITER",
    "StoreLockedError",
    "WriterLock",
    "is_written",
    "writer_lock",
]

LOCK: Final = ".lock"
"""File in a local store that its writer locks."""

LOCK_TIMEOUT: Final = 1.0  # seconds
N_ATTEMPTS: Final = 20


class WriterLock(Protocol):
    """The exclusive right to write a store."""

    async def acquire(self) -> None:
        """Become the writer; a StoreLockedError names the current writer."""

    async def confirm(self) -> None:
        """Raise StoreLockedError if the store was deleted or taken over."""

    async def release(self) -> None:
        """Let other processes write; leave a store alone that was taken over."""


def writer_lock(location: str, store: Store) -> WriterLock:
    """Return the kind of lock that a store at a location needs."""
    if isinstance(store, FencedStore):
        return Lease(location, store)
    if isinstance(store, DirectoryStore):
        return DirectoryLock(location, store)
    return UnconditionalLease(location, store)


class DirectoryLock:
    """The exclusive right to write a store in a directory."""

    def __init__(self, location: str, store: DirectoryStore) -> None:
        self._location, self._store = location, store
        for name in (LOCK, WRITER):
            inside(location, name)
        self._path = Path(location) / LOCK
        self._holder = new_holder()
        # The thread that closes the recorder releases the lock; it can be any thread.
        self._file = FileLock(self._path, thread_local=False, fallback_to_soft=False)
        self._identity: tuple[int, int] | None = None  # of the lock file

    async def acquire(self) -> None:
        """Become the writer; a StoreLockedError names the current writer."""
        with _directory_locked(self._location) as is_alone:
            try:
                self._lock_file()
            except Timeout:
                holder = await read_holder(self._store)
                if not is_alone or is_running(holder) is not False:
                    raise StoreLockedError(_refusal(self._location, holder)) from None
                # Only forks by C code of a process that has ended hold the lock; they never
                # write. No other process replaces the file at the same time.
                self._path.unlink()
                self._lock_file()
            self._identity = _identity(self._path)
            hold(self._holder)
            document = PROTOTYPE.buffer.from_bytes(holder_document(self._holder))
            await self._store.set(WRITER, document)
        self._store.fence = self.check

    async def confirm(self) -> None:
        """Raise StoreLockedError if the store was deleted or taken over."""
        self.check()
        if not await self._is_mine():
            raise StoreLockedError(loss(self._location))

    def check(self) -> None:
        """Raise StoreLockedError if the lock file was deleted or replaced."""
        # No other file can have the number of this file, which is open.
        if self._identity is None or _identity(self._path) != self._identity:
            raise StoreLockedError(loss(self._location))

    async def release(self) -> None:
        """Let other processes write; leave a store alone that was taken over."""
        self._store.fence = None
        try:
            if self._identity == _identity(self._path) and await self._is_mine():
                await self._store.delete(WRITER)
                # Waiting writers notice that the file was deleted while it was locked.
                await self._store.delete(LOCK)
        finally:
            self._file.release()
            let_go(self._holder)

    def _lock_file(self) -> None:
        try:
            # A reader may hold the lock for an instant, to test it.
            self._file.acquire(timeout=LOCK_TIMEOUT)
        except (PermissionError, FileNotFoundError, Timeout):
            raise
        except (OSError, NotImplementedError) as error:
            raise OSError(
                f"The file system of {self._location} could not lock a file ({error}), so "
                "two processes could write the same store. Record to another file system, "
                "for example a local disk, and copy the store afterwards. Stores on this "
                "file system can be read."
            ) from error

    async def _is_mine(self) -> bool:
        holder = await read_holder(self._store)
        return bool(holder.get("token") == self._holder["token"])


def is_written(location: str) -> bool | None:
    """Whether a process is writing a store; None if that cannot be known."""
    store = open_store(location, read_only=True)
    if is_remote(location):
        return sync(has_lease(store))
    # Locking through a link would open a file elsewhere.
    path = Path(location) / LOCK
    if path.is_symlink() or not path.is_file():
        return False
    is_free = _is_free(path)
    if is_free:
        return False
    try:
        running = is_running(sync(read_holder(store)))
    except (OSError, OutsideStoreError):
        running = None
    return True if is_free is False and running is None else running


def _is_free(path: Path) -> bool | None:
    """Whether no process has locked a file; None if that cannot be tested."""
    try:
        # A shared lock needs no permission to write.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _lock(descriptor, exclusive=False)
    except (OSError, NotImplementedError):
        return None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, exclusive: bool) -> bool:
    """Lock an open file without waiting; return whether that has succeeded."""
    if sys.platform == "win32":
        raise NotImplementedError
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _directory_locked(location: str) -> Iterator[bool]:
    """Lock a directory for an instant; yield whether that has succeeded."""
    descriptor = os.open(location, os.O_RDONLY)
    try:
        yield _lock_soon(descriptor)
    finally:
        os.close(descriptor)


def _lock_soon(descriptor: int) -> bool:
    for _ in range(N_ATTEMPTS):
        try:
            if _lock(descriptor, exclusive=True):
                return True
        except OSError:
            # Some network file systems lock only files that are open for writing.
            return False
        time.sleep(LOCK_TIMEOUT / N_ATTEMPTS)
    return False


def _refusal(location: str, holder: dict[str, Any]) -> str:
    own = holder.get("pid") == os.getpid()
    advice = "Close that recorder" if own else "End that process"
    return f"{location} is being written by {describe(holder)}. {advice}, or choose another path."
