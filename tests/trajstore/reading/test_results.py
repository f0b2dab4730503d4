"""Test that results are stored next to their run, in groups named after their target."""

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
