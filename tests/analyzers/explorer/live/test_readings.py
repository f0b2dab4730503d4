"""Test ``analyzers.explorer.live.readings`` while a run is recorded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import analyzers
import trajstore
from analyzers.explorer.live.readings import Readings, expected_steps

PER_EPOCH = 8


@pytest.fixture
def readings_while_training(tmp_path: Path) -> tuple[Readings, list[int]]:
    """Readings of a run, updated after every commit, and their numbers of steps."""
    torch.manual_seed(0)
    model = torch.nn.Linear(12, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    path, counts = tmp_path / "run.zarr", []
    options: dict[str, Any] = {"steps_per_epoch": PER_EPOCH, "total_steps": 40}
    readings: Readings | None = None
    with trajstore.Recorder(path, model, optimizer, **options) as recorder:
        for step in range(40):
            optimizer.zero_grad()
            loss = (model(torch.randn(16, 12)) ** 2).mean()
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
            if step % 5 == 4:
                recorder.flush()
                readings = readings or Readings(str(path))
                readings.update()
                while readings.measure_windows():
                    pass
                counts.append(readings.n_steps)
    assert readings is not None
    readings.update()
    counts.append(readings.n_steps)
    return readings, counts


def test_readings_grow_and_equal_the_stored_steps(
    readings_while_training: tuple[Readings, list[int]],
):
    readings, counts = readings_while_training
    assert counts == sorted(counts)
    assert counts[-1] == 40
    run = trajstore.open_run(readings.run.location)
    for name in ("loss", "lr", "grad_norm", "update_norm"):
        values = run.steps[name].values
        np.testing.assert_array_equal(readings.columns[name], values)
    cosine = analyzers.zigzag(run).cosine.values
    np.testing.assert_allclose(readings.columns["cosine"], cosine, atol=1e-6)
    travelled = np.cumsum(run.steps.update_norm.values)
    np.testing.assert_allclose(readings.columns["travelled"], travelled)
    assert expected_steps(run) == 40
    facts = readings.facts()
    assert facts["step"] == facts["total"] == 40
    assert float(facts["bytes"]) > 1000


def test_lolr_is_relative_to_the_anchor_at_the_end_of_the_window(
    readings_while_training: tuple[Readings, list[int]],
):
    readings, _ = readings_while_training
    run = trajstore.open_run(readings.run.location)
    expected = analyzers.path_geometry(run, reference=3).compute()
    steps = slice(2 * PER_EPOCH, 3 * PER_EPOCH)
    found = readings.columns["lolr"][steps]
    # The estimate of a running window was made before its last steps were known.
    np.testing.assert_allclose(found, expected.lolr.values[steps], rtol=0.2)
