"""Locations of stores: directories, buckets of object storage, and fsspec URLs.

A location is a string: a path, a URL such as ``s3://bucket/runs/run.zarr``, or any URL that
fsspec supports. Endpoints and credentials come from the environment variables of each
storage service (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID`` and so on) and are never stored.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from zarr.abc.buffer import Buffer
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, ObjectStore

OBJECT_SCHEMES: Final = frozenset(
    ["s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss"]
)
"""URL schemes that obstore opens; fsspec opens all other schemes."""


def locate(path: str | os.PathLike[str]) -> str:
    """Return the location of a user's path or URL, without a trailing slash."""
    text = os.fspath(path)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return text.rstrip("/") if is_remote(text) else str(Path(text))


def is_remote(location: str) -> bool:
    """Whether a location is a URL instead of a path."""
    return "://" in location


def name_of(location: str) -> str:
    """Return the last component of a location."""
    return location.rpartition("/")[2] if is_remote(location) else Path(location).name


def sibling(location: str, ending: str) -> str:
    """Replace the ending ``.zarr`` of a location, for example with ``.analysis.zarr``."""
    return location.removesuffix(".zarr") + ending


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
        kind = SyncedStore if fsync else LocalStore
        return kind(location, read_only=read_only)
    scheme = location.partition("://")[0]
    if scheme in OBJECT_SCHEMES:
        obstore = _import("obstore.store", scheme)
        store = obstore.from_url(location, client_options=_client_options())
        return ObjectStore(store, read_only=read_only)
    _import("fsspec", scheme)
    options = {"skip_instance_cache": True} if own_loop else {}
    return FsspecStore.from_url(location, options, read_only=read_only)


class SyncedStore(LocalStore):
    """A directory whose files are synced to the disk one by one."""

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file and return once it would survive a power loss."""
        await super().set(key, value)
        path = self.root / key
        _sync(path)
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
            f"Stores at {scheme}:// need the package {module.partition('.')[0]!r}: "
            "pip install 'trajstore[remote]'."
        ) from error
