"""Object storage in which a writer that lost its lease can change nothing.

A writer may be suspended, or its requests delayed, until another writer has taken over. So
every object is written only if it is still in the state in which this writer left it. If it
is not, the lease decides: it is renewed after the object was looked at, so no successor had
written the object then, and the object is replaced only if it has not changed since.

After an answer is lost, the object is not what the writer knows either, and is written again.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from importlib import import_module
from typing import Any, Final, NamedTuple

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from trajstore.store.patience import OPENING_SECONDS, patiently

Version = dict[str, Any]

MAX_VERSIONS: Final = 1024
"""Number of objects whose versions are remembered; those written last."""


class Found(NamedTuple):
    """An object in the storage."""

    version: Version
    modified: datetime  # by the clock of the storage
    contents: bytes | None  # None unless they were asked for and are short


class FencedStore(ObjectStore[Any]):
    """Object storage for one writer, which waits for the storage if it does not answer."""

    fence: Callable[[], Awaitable[None]] | None = None  # renews the lease

    def __init__(self, store: Any, *, read_only: bool = False) -> None:
        super().__init__(store, read_only=read_only)
        self.patience = OPENING_SECONDS
        self._versions = OrderedDict[str, Version]()

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object; raise an error if another writer has taken over."""
        self._check_writable()
        contents = value.to_bytes()
        if self.fence is None:
            await patiently(lambda: self._put(key, contents), seconds=self.patience)
            return
        # Forget the version until the object is written, for example after Ctrl-C.
        version = self._versions.pop(key, None)
        while (written := await self.put_if(key, contents, version)) is None:
            # Even an object with these contents is written again, because the writer that
            # wrote it still knows its version.
            found = await self.find(key)
            await self.fence()
            version = None if found is None else found.version
        self._versions[key] = written
        if len(self._versions) > MAX_VERSIONS:
            self._versions.popitem(last=False)

    async def put_if(
        self, key: str, contents: bytes, version: Version | None
    ) -> Version | None:
        """Write an object that has a version, or is missing if that is None; else return None."""
        errors = import_module("obstore.exceptions")
        mode = "create" if version is None else version
        try:
            return await patiently(
                lambda: self._put(key, contents, mode), seconds=self.patience
            )
        except (errors.AlreadyExistsError, errors.PreconditionError):
            return None
        except FileNotFoundError:
            # A missing bucket is an error, a missing object is not in the expected state.
            if version is None:
                raise
            return None

    async def _put(
        self, key: str, contents: bytes, mode: str | Version = "overwrite"
    ) -> Version:
        result = await self._call("put_async", key, contents, mode=mode)
        return _version(result)

    async def find(self, key: str, *, at_most: int = 0) -> Found | None:
        """Return an object, with its contents if they are short; None if it is missing."""

        async def request() -> Found | None:
            contents = None
            try:
                meta = await self._call("head_async", key)
                if at_most and meta["size"] <= at_most:
                    response = await self._call("get_async", key)
                    meta, contents = response.meta, bytes(await response.bytes_async())
            except FileNotFoundError:
                return None
            return Found(_version(meta), meta["last_modified"], contents)

        return await patiently(request, seconds=self.patience)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return the contents of an object, or None if it is missing."""
        return await patiently(
            lambda: super(FencedStore, self).get(key, prototype, byte_range),
            seconds=self.patience,
        )

    async def is_empty(self, prefix: str) -> bool:
        """Whether there are no objects below a prefix."""
        return await patiently(
            lambda: super(FencedStore, self).is_empty(prefix), seconds=self.patience
        )

    async def delete(self, key: str) -> None:
        """Delete an object, if it exists."""
        self._check_writable()
        self._versions.pop(key, None)

        async def request() -> None:
            with suppress(FileNotFoundError):
                await self._call("delete_async", key)

        await patiently(request, seconds=self.patience)

    async def delete_dir(self, prefix: str) -> None:
        """Delete all objects below a prefix."""
        await patiently(
            lambda: super(FencedStore, self).delete_dir(prefix), seconds=self.patience
        )

    async def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return await getattr(import_module("obstore"), name)(
            self.store, *arguments, **options
        )


def _version(meta: Any) -> Version:
    """Return the entries of an object's metadata that tell its versions apart."""
    # S3 and Azure compare tags, Google Cloud Storage compares versions.
    return {key: meta[key] for key in ("e_tag", "version") if meta[key] is not None}
