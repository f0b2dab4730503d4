"""Locations of stores: directories, buckets of object storage, and fsspec URLs.

A location is a string: a path, a URL such as ``s3://bucket/runs/run.zarr``, or any URL that
fsspec supports. Endpoints and credentials come from the environment variables of each
storage service (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID`` and so on) and are never stored.
"""

import os
import stat
from collections.abc import AsyncIterator, Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from zarr.abc.buffer import Buffer
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from trajstore.store.fenced import FencedStore

OBJECT_SCHEMES: Final = frozenset(
    ["s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss"]
)
"""URL schemes that obstore opens; fsspec opens all other schemes."""


def locate(path: str | os.PathLike[str]) -> str:
    """Return the location of a user's path or URL, without a trailing slash."""
    # A path is made absolute, so that a program may change its working directory.
    text = os.fspath(path)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return text.rstrip("/") if is_remote(text) else str(Path(text).absolute())


def is_remote(location: str) -> bool:
    """Whether a location is a URL instead of a path."""
    return "://" in location


def name_of(location: str) -> str:
    """Return the last component of a location."""
    return location.rpartition("/")[2] if is_remote(location) else Path(location).name


def sibling(location: str, ending: str) -> str:
    """Replace the ending ``.zarr`` of a location, for example with ``.analysis.zarr``."""
    return location.removesuffix(".zarr") + ending


class OutsideStoreError(ValueError):
    """A path in a store's directory that leads out of it, or is a pipe or a device."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.args[0]} {self.reason}; a store has only files and directories, and "
            "nothing else in it is read, written or deleted. Remove it, or copy the "
            "store with its links resolved."
        )


def inside(root: str | Path, key: str) -> Path:
    """Return the path of a key, if it is a file or directory inside `root`, or is missing."""
    # `root` itself may be a link, for example to another disk.
    path = os.fspath(root)
    for part in key.split("/"):
        if part == "..":
            raise OutsideStoreError(f"{root}/{key}", "leads out of the store")
        path = f"{path}/{part}"
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISLNK(mode):
            raise OutsideStoreError(f"{root}/{key}", "leads through a link")
        # Reading from a pipe or a device may never end.
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OutsideStoreError(f"{root}/{key}", "is not a file")
    return Path(path)


def open_store(
    location: str,
    *,
    read_only: bool = False,
    own_loop: bool = False,
    fsync: bool = False,
) -> Store:
    """Open the storage at `location`, returned by `locate`, even if it does not exist yet."""
    # With `own_loop`, the store runs in another event loop than Zarr's, so it must not share
    # connections with other stores. With `fsync`, each file in a directory is synced to the
    # disk before the next is written, so writes survive a power loss, as they always do in
    # object storage.
    if not is_remote(location):
        kind = SyncedStore if fsync else DirectoryStore
        return kind(location, read_only=read_only)
    scheme = location.partition("://")[0]
    if scheme in OBJECT_SCHEMES:
        obstore = _import("obstore.store", scheme)
        options: dict[str, Any] = {"client_options": _client_options()}
        if read_only:
            return ObjectStore(obstore.from_url(location, **options), read_only=True)
        # A writer repeats requests by itself, for longer (`patience`).
        options["retry_config"] = {"max_retries": 3}
        return FencedStore(obstore.from_url(location, **options))
    _import("fsspec", scheme)
    options = {"skip_instance_cache": True} if own_loop else {}
    return FsspecStore.from_url(location, options, read_only=read_only)


class DirectoryStore(LocalStore):
    """A directory in which links, pipes and devices are refused."""

    # Called before every change; raises an error if this process is no longer the writer.
    fence: Callable[[], None] | None = None

    def _changeable(self, key: str) -> Path:
        """Return the path of a key that may be changed."""
        if self.fence is not None:
            self.fence()
        return inside(self.root, key)

    async def get(self, key: str, *part: Any, **options: Any) -> Buffer | None:
        """Return the contents of a file, or None if it is missing."""
        inside(self.root, key)
        return await super().get(key, *part, **options)

    def get_sync(self, key: str, **options: Any) -> Buffer | None:
        """Return the contents of a file, or None if it is missing."""
        inside(self.root, key)
        return super().get_sync(key, **options)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file."""
        self._changeable(key)
        await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a file unless it exists."""
        self._changeable(key)
        await super().set_if_not_exists(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write a file."""
        self._changeable(key)
        super().set_sync(key, value)

    async def delete(self, key: str) -> None:
        """Delete a file or a directory."""
        self._changeable(key)
        await super().delete(key)

    def delete_sync(self, key: str) -> None:
        """Delete a file or a directory."""
        self._changeable(key)
        super().delete_sync(key)

    async def delete_dir(self, prefix: str) -> None:
        """Delete a directory."""
        self._changeable(prefix)
        await super().delete_dir(prefix)

    async def exists(self, key: str) -> bool:
        """Whether a file exists."""
        return inside(self.root, key).is_file()

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys of all files below a directory."""
        inside(self.root, prefix)
        async for key in super().list_prefix(prefix):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names in a directory."""
        inside(self.root, prefix)
        async for name in super().list_dir(prefix):
            yield name

    async def getsize(self, key: str) -> int:
        """Return the size of a file."""
        return inside(self.root, key).stat().st_size


class SyncedStore(DirectoryStore):
    """A directory whose files are synced to the disk one by one."""

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file and return once it would survive a power loss."""
        # Rename the file when its bytes are on the disk, so it is never seen without them.
        partial, path = self.root / f"{key}.partial", self._changeable(key)
        await super().set(f"{key}.partial", value)
        _sync(partial)
        partial.replace(path)
        for directory in path.parents:
            _sync(directory)
            if directory == self.root:
                break


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _client_options() -> dict[str, Any]:
    """Return options that allow plain HTTP if the URL of an endpoint begins with ``http://``."""
    endpoints = [os.environ.get(f"AWS_ENDPOINT_URL{s}", "") for s in ("", "_S3")]
    return {"allow_http": any(url.startswith("http://") for url in endpoints)}


def _import(module: str, scheme: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Stores at {scheme}:// need the package {module.partition('.')[0]}, which is not "
            'installed. Run\npip install "trajstore[remote]"'
        ) from error
