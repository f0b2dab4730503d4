"""Test that locations name the same place everywhere."""

from pathlib import Path

import pytest
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from trajstore.store import location
from trajstore.store.location import is_remote, locate, name_of, open_store, sibling


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs/a.zarr/", "runs/a.zarr"),
        (Path("runs") / "a.zarr", "runs/a.zarr"),
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
        ("/data/a.zarr", LocalStore),
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
    with pytest.raises(ModuleNotFoundError, match=r"s3://.*'obstore'.*\[remote\]"):
        open_store("s3://bucket/a.zarr")
