"""Test that stored losses at x* are checked before they are read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import trajstore
from analyzers.geometry.losses import replayed
from tests.trajstore.store.test_chunks import flip_a_bit, make_a_pipe, remove
from trajstore.reading.results import (
    replayed_from,
    results_location,
    write_results,
)
from trajstore.reading.run import Run
from trajstore.reading.target import find_target

LOSSES = np.linspace(1, 2, 60)


@pytest.fixture
def run(example_run: Path, tmp_path: Path) -> Run:
    """A copy of the example run of 60 steps, with made-up losses next to it."""
    run = trajstore.open_run(shutil.copytree(example_run, tmp_path / "run.zarr"))
    computed_from = replayed_from(run, find_target(run, "final"))
    attrs = {"method": "made up", "computed_from": computed_from}
    losses = {"reference_loss": ("step", LOSSES), "full_reference_loss": 0.0}
    write_results(run, "replay-final", xr.Dataset(losses, attrs=attrs))
    return run


def test_losses_are_read(run: Run):
    found = replayed(run)
    np.testing.assert_array_equal(found["reference_loss"], LOSSES)
    assert (float(found["full_reference_loss"]), found.attrs["method"]) == (
        0,
        "made up",
    )
    np.testing.assert_array_equal(found["epoch"], run.steps["epoch"])


def ask_for_a_foreign_codec(file: Path) -> None:
    document = file.parents[1] / "zarr.json"
    text = json.loads(document.read_text()) | {"codecs": [{"name": "pickle"}]}
    document.write_text(json.dumps(text))


DAMAGES = {
    "missing": (remove, "c/0 is missing"),
    "flipped": (flip_a_bit, "c/0 .*checksum do not match"),
    "pipe": (make_a_pipe, "c/0 is not a file"),
    "codec": (ask_for_a_foreign_codec, "codecs: expected .*, got .*pickle"),
}


@pytest.mark.parametrize(("damage", "text"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_losses_are_refused(
    run: Run, damage: Callable[[Path], None], text: str
):
    damage(Path(results_location(run), "replay-final/reference_loss/c/0"))
    advice = "Delete the group 'replay-final' of .*, then give .* compute them with traj-train"
    with pytest.raises(ValueError, match=rf"are not valid: .*{text}.*{advice}"):
        replayed(run)


def test_losses_of_another_run_are_refused(run: Run, tmp_path: Path):
    file = Path(results_location(run), "replay-final/reference_loss/c/0")
    shutil.copy(file, tmp_path / "chunk")
    attrs = {"computed_from": replayed_from(run, find_target(run, "final"))}
    losses = {"reference_loss": ("step", 2 * LOSSES), "full_reference_loss": 0.0}
    write_results(run, "replay-final", xr.Dataset(losses, attrs=attrs))
    assert replayed(run)["reference_loss"][3] == 2 * LOSSES[3]
    shutil.copy(tmp_path / "chunk", file)
    with pytest.raises(ValueError, match="is not the part of this result"):
        replayed(run)


def test_a_missing_chunk_of_a_single_loss_is_noticed(run: Run):
    """The full loss is 0, which Zarr would not store by itself."""
    remove(Path(results_location(run), "replay-final/full_reference_loss/c"))
    with pytest.raises(ValueError, match="full_reference_loss/c is missing"):
        replayed(run)


def test_absent_losses_are_named_with_the_command(run: Run):
    for part in ("replay-final/full_reference_loss", "replay-final", ""):
        shutil.rmtree(Path(results_location(run), part))
        with pytest.raises(
            ValueError,
            match=r"not known.*; give an array .*run of traj-train, compute them with",
        ):
            replayed(run)
