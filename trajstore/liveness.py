"""Whether a process is writing a store just now.

In a directory the writer holds a lock, which the system releases when it dies. Elsewhere
it writes a document anew from time to time, and counts as gone when that has become old.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from zarr.abc.store import Store
from zarr.core.sync import sync
from zarr.storage import ObjectStore

from trajstore.location import is_remote
from trajstore.schema import LEASE_SECONDS, LOCK, WRITER


def is_written(location: str, store: Store) -> bool:
    """Whether a process writes a store.

    Parameters
    ----------
    location : str
        Of the store.
    store : zarr.abc.store.Store
        The storage there.

    Returns
    -------
    bool
        In storage that keeps no times of its documents, whether a writer has come and
        not said that it left.
    """
    if not is_remote(location):
        return _is_locked(Path(location) / LOCK)
    if not sync(store.exists(WRITER)):
        return False
    if isinstance(store, ObjectStore):
        return _age(store) < timedelta(seconds=LEASE_SECONDS)
    return True


def _age(store: ObjectStore[Any]) -> timedelta:
    # What obstore's stores are is known where they are opened only.
    modified: datetime = store.store.head(WRITER)["last_modified"]
    return datetime.now(UTC) - modified


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock at `path`."""
    # A link would have a file elsewhere opened, and created.
    if path.is_symlink() or not path.is_file():
        return False
    try:
        # Another reader may be asking just now; a writer keeps the lock.
        with FileLock(path, timeout=0.2, poll_interval=0.02):
            return False
    except (Timeout, PermissionError):
        return True
