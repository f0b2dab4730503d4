"""Test that locations name the same place everywhere."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from zarr.buffer import default_buffer_prototype
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from trajstore.store import location
from trajstore.store.location import (
    DirectoryStore,
    OutsideStoreError,
    inside,
    is_remote,
    locate,
    name_of,
    open_store,
    sibling,
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs/a.zarr/", str(Path.cwd() / "runs/a.zarr")),
        (Path("runs") / "a.zarr", str(Path.cwd() / "runs/a.zarr")),
        ("file:///data/a.zarr", "/data/a.zarr"),
        ("s3://bucket/runs/a.zarr/", "s3://bucket/runs/a.zarr"),
        ("memory://a.zarr", "memory://a.zarr"),
    ],
)
def test_paths_and_urls_are_located(given: str | Path, expected: str):
    assert locate(given) == expected


def test_only_urls_are_remote():
    assert is_remote("s3://bucket/a.zarr")
    assert not is_remote("/data/a.zarr")


@pytest.mark.parametrize("place", ["/data", "s3://bucket/runs", "relative"])
def test_siblings_lie_next_to_a_store(place: str):
    assert sibling(f"{place}/a.zarr", ".analysis.zarr") == f"{place}/a.analysis.zarr"
    assert sibling(f"{place}/a", ".analysis.zarr") == f"{place}/a.analysis.zarr"
    assert name_of(f"{place}/a.zarr") == "a.zarr"


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/data/a.zarr", DirectoryStore),
        ("s3://bucket/a.zarr", ObjectStore),
        ("gs://bucket/a.zarr", ObjectStore),
        ("memory://a.zarr", FsspecStore),
    ],
)
def test_each_location_is_opened_by_its_library(
    place: str, kind: type, monkeypatch: pytest.MonkeyPatch
):
    if kind is ObjectStore:
        pytest.importorskip("obstore")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    store = open_store(place, read_only=True)
    assert type(store) is kind
    assert store.read_only


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(location, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=r"(?s)s3://.* obstore,.*\[remote\]"):
        open_store("s3://bucket/a.zarr")


def make_link(path: Path) -> None:
    """Link to a file or a directory outside, of the same name."""
    path.symlink_to(path.parent.parent / "outside" / path.name)


WAYS_OUT = {
    "linked file": ("file", make_link, "leads through a link"),
    "file in a linked directory": ("folder/file", make_link, "leads through a link"),
    "dangling link": ("nothing", make_link, "leads through a link"),
    "pipe": ("file", os.mkfifo, "is not a file"),
    "parent": ("../outside/file", lambda _: None, "leads out of the store"),
}
PROTOTYPE = default_buffer_prototype()
BUFFER = PROTOTYPE.buffer.from_bytes(b"new")


async def count(keys: Any) -> int:
    return len([key async for key in keys])


CALLS: dict[str, Callable[[DirectoryStore, str], Any]] = {
    "get": lambda store, key: store.get(key, PROTOTYPE),
    "set": lambda store, key: store.set(key, BUFFER),
    "set_if_not_exists": lambda store, key: store.set_if_not_exists(key, BUFFER),
    "delete": lambda store, key: store.delete(key),
    "delete_dir": lambda store, key: store.delete_dir(key),
    "exists": lambda store, key: store.exists(key),
    "getsize": lambda store, key: store.getsize(key),
    "list_prefix": lambda store, key: count(store.list_prefix(key)),
    "list_dir": lambda store, key: count(store.list_dir(key)),
    "get_sync": lambda store, key: store.get_sync(key, prototype=PROTOTYPE),
    "set_sync": lambda store, key: store.set_sync(key, BUFFER),
    "delete_sync": lambda store, key: store.delete_sync(key),
}


@pytest.mark.parametrize("fsync", [False, True], ids=["plain", "synced"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("key", "make", "reason"), WAYS_OUT.values(), ids=WAYS_OUT)
def test_no_call_leads_out_of_a_directory(
    key: str,
    make: Callable[[Path], None],
    reason: str,
    call: Callable[[DirectoryStore, str], Any],
    fsync: bool,
    tmp_path: Path,
):
    (tmp_path / "outside" / "folder").mkdir(parents=True)
    for name in ("file", "folder/file"):
        (tmp_path / "outside" / name).write_bytes(b"old")
    (tmp_path / "run.zarr").mkdir()
    make(tmp_path / "run.zarr" / key.partition("/")[0])
    store = open_store(str(tmp_path / "run.zarr"), fsync=fsync)
    assert isinstance(store, DirectoryStore)

    async def run() -> None:
        result = call(store, key)
        if asyncio.iscoroutine(result):
            await result

    with pytest.raises(OutsideStoreError, match=f"{key} {reason}.*Remove it"):
        asyncio.run(run())
    files = sorted(f for f in (tmp_path / "outside").rglob("*") if f.is_file())
    assert [f.read_bytes() for f in files] == [b"old", b"old"]


def test_every_method_with_a_key_is_checked():
    """A method of Zarr's store that takes a key is in `CALLS`, or calls one that is."""
    derived = {"get_partial_values", "getsize_prefix", "is_empty", "list", "move"}
    public = {n for n, m in vars(LocalStore).items() if callable(m) and n[0] != "_"}
    without_key = {"open", "clear", "with_read_only"}
    assert public - derived - without_key <= set(CALLS)


def test_the_top_of_a_store_may_be_a_link(tmp_path: Path):
    (tmp_path / "disk" / "a").mkdir(parents=True)
    (tmp_path / "run.zarr").symlink_to(tmp_path / "disk")
    assert inside(tmp_path / "run.zarr", "a/b") == tmp_path / "run.zarr" / "a" / "b"
