"""Where stores lie: in directories, in buckets of object storage, or where fsspec reaches.

A location is a string: a path, ``s3://bucket/runs/run.zarr`` and the like, or any URL that
fsspec knows. Endpoints and credentials come from the environment, as the tools of each
storage read them (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID`` and so on), and are written
nowhere.
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
"""Schemes that obstore opens; others are left to fsspec."""


def locate(path: str | os.PathLike[str]) -> str:
    """Return the location that a user's path or URL names, without a final slash."""
    text = os.fspath(path)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return text.rstrip("/") if is_remote(text) else str(Path(text))


def is_remote(location: str) -> bool:
    """Whether a location is a URL instead of a path."""
    return "://" in location


def name_of(location: str) -> str:
    """Return the last part of a location."""
    return location.rpartition("/")[2] if is_remote(location) else Path(location).name


def sibling(location: str, ending: str) -> str:
    """Return the location beside a store that has its name with another ending.

    Parameters
    ----------
    location : str
        Of a store, ``.../run.zarr``.
    ending : str
        What stands in the place of ``.zarr``, such as ``.analysis.zarr``.

    Returns
    -------
    str
        ``.../run.analysis.zarr``.
    """
    return location.removesuffix(".zarr") + ending


def open_store(
    location: str,
    *,
    read_only: bool = False,
    for_one_loop: bool = False,
    fsync: bool = False,
) -> Store:
    """Open the storage at a location; does not look whether there is anything.

    Parameters
    ----------
    location : str
        As `locate` returns it.
    read_only : bool, default: False
        Whether writing is refused.
    for_one_loop : bool, default: False
        Whether the store will be used in an event loop other than Zarr's: it shares no
        connections then.
    fsync : bool, default: False
        Whether what is written survives a loss of power: in a directory, every file is
        synced to the disk before the next. Object storage survives it in any case.

    Returns
    -------
    zarr.abc.store.Store
        Keys are relative to the location.

    Raises
    ------
    ModuleNotFoundError
        If the package that reaches the storage is not installed; says which.
    """
    if not is_remote(location):
        kind = SyncedStore if fsync else LocalStore
        return kind(location, read_only=read_only)
    scheme = location.partition("://")[0]
    if scheme in OBJECT_SCHEMES:
        obstore = _import("obstore.store", scheme)
        store = obstore.from_url(location, client_options=_client_options())
        return ObjectStore(store, read_only=read_only)
    _import("fsspec", scheme)
    options = {"skip_instance_cache": True} if for_one_loop else {}
    return FsspecStore.from_url(location, options, read_only=read_only)


class SyncedStore(LocalStore):
    """A directory whose files are synced to the disk one after the other."""

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file, and return when it will be there after a loss of power."""
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
    """Allow what other tools allow: an endpoint without encryption, if it says so."""
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
