"""Test ``analyzers.explorer.contents.conditions`` against the public analyses."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch")

import analyzers
import trajstore
from analyzers.explorer.contents.conditions import Conditions, conditions_of
from analyzers.explorer.contents.shown_run import show_runs
from analyzers.gradients.arrays.segments import find_segments
from trajstore.reading.results import replay_group, replayed_from, write_results
from trajstore.reading.run import Run
from trajstore.reading.target import find_target


def conditions(run: Run) -> Conditions:
    return conditions_of(show_runs([run])[0])


def record_oscillation(path: Path) -> Run:
    """Record gradient descent on a quadratic, beyond the threshold of its largest curvature."""
    x = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([x], lr=0.1)
    attrs = {"training": {"optimizer": "sgd"}}
    with trajstore.Recorder(
        path, {"x": x}, optimizer, steps_per_epoch=10, attrs=attrs, exact=True
    ) as recorder:
        for step in range(60):
            optimizer.zero_grad()
            curvature = 2.0 if step < 30 else 19.5
            loss = 0.5 * curvature * (x**2).sum()
            loss.backward()
            if step % 7 == 0:
                recorder.log(sharpness=curvature)
            recorder.log(loss=loss)
            optimizer.step()
    return trajstore.open_run(path)


@pytest.fixture
def oscillation(tmp_path: Path) -> Run:
    return record_oscillation(tmp_path / "run.zarr")


def test_segments_are_those_of_the_analysis(oscillation: Run):
    found = conditions(oscillation)
    segments = find_segments(analyzers.zigzag_segments(oscillation).label.values)
    assert found.kinds is not None
    assert set(segments.kind.tolist()) >= {-1, 1}
    np.testing.assert_array_equal(found.kinds["kind"], segments.kind)
    np.testing.assert_allclose(found.kinds["left"], segments.start / 10, rtol=1e-6)
    np.testing.assert_allclose(found.kinds["right"], segments.stop / 10, rtol=1e-6)


def test_ratios_are_those_of_the_edge_of_stability(oscillation: Run):
    found = conditions(oscillation)
    expected = analyzers.edge_of_stability(oscillation)
    assert found.stability is not None
    np.testing.assert_allclose(found.stability["ratio"], expected.ratio, rtol=1e-6)
    np.testing.assert_allclose(
        found.stability["x"], np.arange(0, 60, 7) / 10, rtol=1e-6
    )


def test_pairs_are_those_of_the_alpha_beta_condition(
    tmp_path: Path, train_small: Callable[..., Any]
):
    path = tmp_path / "run.zarr"
    train_small(partial(trajstore.Recorder, path), sketch_bits=1024, probes=256)
    run = trajstore.open_run(path)
    assert conditions(run).pairs is None
    losses = 0.6 * run.steps.loss.values
    target = find_target(run, "final")
    replay = xr.Dataset(
        {
            "reference_loss": ("step", losses),
            "full_reference_loss": float(losses.mean()),
        },
        attrs={"computed_from": replayed_from(run, target), "method": "made up"},
    )
    assert json.loads(str(replay.attrs["computed_from"]))["n_steps"] == 60
    write_results(run, replay_group(target), replay)
    analyzers.store_geometry(run)
    found = conditions(run).pairs
    expected = analyzers.feasible_set(analyzers.alpha_beta(run))
    assert found is not None
    for name in ("best_alpha", "best_beta", "alpha", "beta"):
        np.testing.assert_allclose(found[name].values, expected[name].values)
