"""Test that results are stored next to their run, in groups named after their target."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import xarray as xr

from tests.trajstore.handmade import write_run
from trajstore import open_run
from trajstore.reading.results import (
    replay_group,
    results_location,
    target_slug,
    write_results,
)
from trajstore.reading.target import find_target
from trajstore.store.location import OutsideStoreError


@pytest.mark.parametrize(
    ("label", "slug"),
    [
        ("final", "final"),
        ("given", "given"),
        ("epoch 12", "epoch-12"),
        ("snapshot warm up/2", "snapshot-warm%20up%2F2"),
        ("final of other.zarr", "final-of-other.zarr"),
    ],
)
def test_a_label_becomes_a_part_of_a_path(label: str, slug: str):
    assert target_slug(label) == slug


def test_results_replace_the_contents_of_their_group_only(tmp_path: Path):
    write_run(tmp_path / "run.zarr", n_steps=4)
    run = open_run(tmp_path / "run.zarr")
    location = results_location(run)
    assert location == str(tmp_path / "run.analysis.zarr")
    for group, value in (("a", 1), ("b", 2), ("a", 3)):
        write_results(run, group, xr.Dataset({f"x{value}": value}))
    a, b = (
        xr.open_zarr(location, group=group, consolidated=False) for group in ("a", "b")
    )
    assert (list(a), list(b)) == (["x3"], ["x2"])
    assert replay_group(find_target(run, "final")) == "replay-final"


@pytest.mark.parametrize("place", ["", "a", "a/x"], ids=["top", "group", "array"])
def test_results_are_not_written_through_links(place: str, tmp_path: Path):
    write_run(tmp_path / "run.zarr", n_steps=4)
    run = open_run(tmp_path / "run.zarr")
    write_results(run, "a", xr.Dataset({"x": ("t", [1.0, 2.0])}))
    linked = tmp_path / "run.analysis.zarr" / place
    shutil.move(linked, tmp_path / "outside")
    linked.symlink_to(tmp_path / "outside")
    before = contents(tmp_path / "outside")
    # A linked array is replaced, together with its group.
    refused = pytest.raises(OutsideStoreError, match="leads through a link")
    with nullcontext() if place == "a/x" else refused:
        write_results(run, "a", xr.Dataset({"x": ("t", [3.0, 4.0])}))
    assert contents(tmp_path / "outside") == before


def contents(directory: Path) -> dict[str, bytes]:
    files = [f for f in directory.rglob("*") if f.is_file()]
    return {str(f.relative_to(directory)): f.read_bytes() for f in files}
