"""Allow only one writer for each store in remote storage, which has no locks.

The document `WRITER` is a lease. The writer creates it and renews it with every commit.
Another writer may take over if the lease was given back, if the writer's process has ended
on the same machine, or if the lease is `LEASE_SECONDS` old. The age is the difference of two
dates of the storage, so no clock of a writer matters.

In object storage a lease is created and renewed by conditional puts, so only one of two
rivals succeeds, and `FencedStore` keeps a writer that lost its lease from changing anything.
Storage that only fsspec reaches has no conditional puts; there, two rivals that start at the
same instant are not detected.
"""

from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from zarr.abc.store import Store
from zarr.storage import FsspecStore, ObjectStore

from trajstore.store.fenced import FencedStore, Version
from trajstore.store.holder import (
    MAX_WRITER_BYTES,
    PROTOTYPE,
    WRITER,
    StoreLockedError,
    describe,
    hold,
    holder_document,
    is_running,
    let_go,
    new_holder,
    parse_holder,
    read_holder,
)
from trajstore.store.patience import OPENING_SECONDS, outage_seconds

LEASE_SECONDS: Final = 600
"""Time without a renewal after which another writer may take over a lease."""

CLOCK: Final = ".clock"
"""Object that is written to learn the time of the storage."""


class Lease:
    """The exclusive right to write a store in object storage."""

    def __init__(self, location: str, store: FencedStore) -> None:
        self._location, self._store = location, store
        self._holder = new_holder()
        self._version: Version | None = None

    async def acquire(self) -> None:
        """Become the writer; a StoreLockedError names the current writer."""
        hold(self._holder)
        document, version = self._document(), None
        while True:
            self._version = await self._store.put_if(WRITER, document, version)
            if self._version is not None:
                break
            found = await self._store.find(WRITER, at_most=MAX_WRITER_BYTES)
            if found is None:
                version = None
                continue
            holder = parse_holder(found.contents or b"")
            if holder.get("token") == self._holder["token"]:
                # The lease was created, but the answer was lost.
                self._version = found.version
                break
            if not is_free(holder):
                now = await self._now()
                age = (now - found.modified).total_seconds()
                if age < LEASE_SECONDS:
                    raise StoreLockedError(refusal(self._location, holder, age))
            version = found.version
        self._store.fence, self._store.patience = self.confirm, outage_seconds()

    async def confirm(self) -> None:
        """Renew the lease; raise StoreLockedError if the store was deleted or taken over."""
        await self._put(self._document())

    async def release(self) -> None:
        """Give the lease back, without deleting the lease of a successor."""
        self._store.patience = OPENING_SECONDS
        try:
            if self._version is not None:
                await self._put(self._document(released=True))
        except StoreLockedError:
            pass
        finally:
            let_go(self._holder)

    async def _put(self, document: bytes) -> None:
        """Replace the lease by a document that has never been written before."""
        version = self._version
        assert version is not None
        while (written := await self._store.put_if(WRITER, document, version)) is None:
            found = await self._store.find(WRITER, at_most=MAX_WRITER_BYTES)
            holder = parse_holder((found and found.contents) or b"")
            if found is None or holder.get("token") != self._holder["token"]:
                raise StoreLockedError(loss(self._location))
            # The answer to this put, or to an earlier put, was lost.
            version = found.version
            if found.contents == document:
                written = version
                break
        self._version = written

    def _document(self, *, released: bool = False) -> bytes:
        now = datetime.now(UTC).isoformat()
        document = self._holder | {"renewed": now, "renewal": uuid4().hex}
        return holder_document(document | ({"released": True} if released else {}))

    async def _now(self) -> datetime:
        """Return the time of the storage."""
        await self._store.set(CLOCK, PROTOTYPE.buffer.from_bytes(uuid4().bytes))
        found = await self._store.find(CLOCK)
        await self._store.delete(CLOCK)
        # A rival may have deleted the object first.
        return datetime.min.replace(tzinfo=UTC) if found is None else found.modified


class UnconditionalLease:
    """The right to write a store that fsspec reaches."""

    def __init__(self, location: str, store: Store) -> None:
        self._location, self._store = location, store
        self._holder = new_holder()

    async def acquire(self) -> None:
        """Become the writer; a StoreLockedError names the current writer."""
        hold(self._holder)
        holder = await read_holder(self._store)
        if holder and not is_free(holder):
            await self._store.set(CLOCK, PROTOTYPE.buffer.from_bytes(b"clock"))
            dates = [await _modified(self._store, key) for key in (CLOCK, WRITER)]
            await self._store.delete(CLOCK)
            if (age := _difference(*dates)) < LEASE_SECONDS:
                raise StoreLockedError(refusal(self._location, holder, age))
        await self._put()

    async def confirm(self) -> None:
        """Renew the lease; raise StoreLockedError if the store was deleted or taken over."""
        if not await self._is_mine():
            raise StoreLockedError(loss(self._location))
        await self._put()

    async def release(self) -> None:
        """Give the lease back; leave a store alone that was taken over."""
        try:
            if await self._is_mine():
                await self._put(released=True)
        finally:
            let_go(self._holder)

    async def _is_mine(self) -> bool:
        holder = await read_holder(self._store)
        return bool(holder.get("token") == self._holder["token"])

    async def _put(self, *, released: bool = False) -> None:
        document = self._holder | {"renewed": datetime.now(UTC).isoformat()}
        document |= {"released": True} if released else {}
        value = PROTOTYPE.buffer.from_bytes(holder_document(document))
        await self._store.set(WRITER, value)


def is_free(holder: dict[str, Any]) -> bool:
    """Whether a lease was given back, or the process that holds it has ended."""
    return holder.get("released") is True or is_running(holder) is False


async def has_lease(store: Store) -> bool:
    """Whether a store has a lease that has not expired, as far as a reader can tell."""
    holder = await read_holder(store)
    if not holder or is_free(holder):
        return False
    if is_running(holder):
        return True
    # A reader cannot write, so it must compare the date of the storage with its own clock.
    renewed = await _modified(store, WRITER)
    return _difference(datetime.now(UTC), renewed) < LEASE_SECONDS


async def _modified(store: Store, key: str) -> datetime | None:
    """Return the time at which the storage wrote an object; None if it keeps no dates."""
    if isinstance(store, ObjectStore):
        modified: datetime = (await store.store.head_async(key))["last_modified"]
        return modified
    assert isinstance(store, FsspecStore)
    info = await store.fs._info(f"{store.path}/{key}")
    for name in ("LastModified", "last_modified", "mtime", "modified", "updated"):
        date = info.get(name)
        if isinstance(date, int | float):
            return datetime.fromtimestamp(date, UTC)
        if isinstance(date, str):
            date = datetime.fromisoformat(date)
        if isinstance(date, datetime):
            return date if date.tzinfo else date.replace(tzinfo=UTC)
    created: datetime | None = info.get("created")
    return created


def _difference(now: datetime | None, then: datetime | None) -> float:
    """Return the seconds between two dates; 0 if one is unknown."""
    if now is None or then is None:
        return 0.0
    return (now - then).total_seconds()


def refusal(location: str, holder: dict[str, Any], age: float) -> str:
    """Return the message of an error that names the current writer of a remote store."""
    minutes = max(1, round((LEASE_SECONDS - age) / 60))
    return (
        f"{location} is being written by {describe(holder)}. End that process, or choose "
        f"another path. If it has crashed, wait: the store is free {LEASE_SECONDS // 60} "
        f"minutes after its last commit, in {minutes} minutes."
    )


def loss(location: str) -> str:
    """Return the message of an error if a store no longer belongs to its writer."""
    return (
        f"{location} was deleted, or taken over by another writer, while it was "
        "being recorded. Nothing more is written to it."
    )
