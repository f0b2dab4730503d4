"""Test the losses along a path of a run that ``traj-train`` has recorded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from tests.train.small_workloads import truncate
from train.commands import replay
from train.protocols.chords import losses_between
from train.protocols.record import record
from train.workloads.catalogue import settings_of
from trajstore.format.attrs import LINES, PLANE
from trajstore.reading.results import results_location
from trajstore.reading.run import open_run


def test_losses_are_stored_next_to_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    truncate(monkeypatch, "digits-mlp", 50)
    path = tmp_path / "run.zarr"
    training = replace(settings_of("digits-mlp"), epochs=4, batch_size=16)
    record(training, path, sketch_bits=1024, probes=64)
    replay(str(path), lines=True, plane=2)
    assert f"traj-analyze losses {path}" in capsys.readouterr().out
    run = open_run(path)
    location = results_location(run)
    found = [
        xr.open_zarr(location, group=group, consolidated=False, chunks=None)
        for group in (LINES, PLANE)
    ]
    chord = losses_between(run, 0, "final", fractions=found[0]["fraction"].values)
    np.testing.assert_allclose(found[0]["loss"].sel(epoch=0), chord, rtol=1e-9)
    assert found[1]["loss"].shape == (2, 2)
    apart = abs(found[1]["point_loss"] - found[1]["projected_loss"])
    assert found[1].attrs["projection_error"] == float(apart.max())
