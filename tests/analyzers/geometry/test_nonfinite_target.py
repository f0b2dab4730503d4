"""Targets of runs that diverged."""

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyzers
import trajstore
from analyzers import geometry as internal
from analyzers.cli import main
from analyzers.geometry.nonfinite_target import nonfinite_target
from trajstore.reading.target import find_target

torch = pytest.importorskip("torch")

from trajstore import Recorder

EVERY, BAD, N_STEPS = 4, 9, 18
"""Steps in a window; the first step with a gradient that is not finite; steps in the run."""


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record a run whose gradients are NaN from step `BAD` on, so its parameters later."""
    path = tmp_path_factory.mktemp("diverged") / "run.zarr"
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options: dict[str, Any] = {"sketch_bits": 64, "probes": 32, "basis": 1}
    with (
        warnings.catch_warnings(),
        Recorder(path, model, optimizer, reference_every=EVERY, **options) as recorder,
    ):
        warnings.simplefilter("ignore")
        for step in range(N_STEPS):
            if step in {6, 12}:
                recorder.snapshot(f"before {step}")
            optimizer.zero_grad()
            factor = torch.nan if step >= BAD else 1.0
            (factor * model(torch.randn(8, 20)).square().mean()).backward()
            optimizer.step()
    return path


@pytest.mark.parametrize("reference", ["final", "before 12", "step:12", "step:16"])
def test_targets_that_are_not_finite_name_one_that_is(diverged: Path, reference: str):
    run = trajstore.open_run(diverged)
    found = nonfinite_target(run, find_target(run, reference))
    assert "is not finite" in found
    assert f'not finite from step {BAD + 1} on. Use reference="step:8"' in found


@pytest.mark.parametrize("reference", [0, "before 6", "step:4", "step:8"])
def test_finite_targets_are_used_as_they_are(diverged: Path, reference: str | int):
    run = trajstore.open_run(diverged)
    assert nonfinite_target(run, find_target(run, reference)) == ""
    gamma = analyzers.path_geometry(run, reference=reference).gamma.values
    start = int(reference[-1]) if isinstance(reference, str) else 0
    expected = np.ones(N_STEPS, bool)
    expected[BAD:] = False
    if reference != "before 6":
        expected[start] = False  # the distance is 0
        assert np.isfinite(gamma)[expected].all()
    assert not np.isfinite(gamma[BAD:]).any()


def test_an_analysis_warns_and_is_nan(diverged: Path):
    with pytest.warns(UserWarning, match=r"x\* of .* not finite .*step:8") as caught:
        gamma = analyzers.path_geometry(diverged).gamma
    assert caught[0].filename == __file__
    assert np.isnan(gamma.values).all()


def test_given_values_and_other_runs_are_checked(diverged: Path):
    run = trajstore.open_run(diverged)
    start = trajstore.parameters_at(run, 0)
    assert nonfinite_target(run, find_target(run, start)) == ""
    start["bias"][2] = np.inf
    message = nonfinite_target(run, find_target(run, start))
    assert "arrays given by the caller" in message
    assert message.endswith("Give another target.")
    with pytest.warns(UserWarning, match="is not finite"):
        analyzers.path_geometry(run, reference=trajstore.open_run(diverged))


def test_the_command_ends_with_a_message(
    diverged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arguments = ["traj-analyze", "geometry", str(diverged)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="1"):
        main()
    text = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "Use --reference step:8, the last anchor before that step." in text
    monkeypatch.setattr(sys, "argv", [*arguments, "--reference", "step:8"])
    main()
    assert (diverged.with_name("run.analysis.zarr") / "step-8" / "zarr.json").is_file()


def test_pages_measure_against_the_last_finite_anchor(diverged: Path):
    assert internal.default_reference(trajstore.open_run(diverged)) == "step:8"


def test_runs_without_epochs_are_measured_against_their_last_window(tmp_path: Path):
    model = torch.nn.Linear(20, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(tmp_path / "run.zarr", model, optimizer, reference_every=4)
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
    recorder.flush()
    run = trajstore.open_run(tmp_path / "run.zarr")
    assert internal.default_reference(run) == "step:8"
    with pytest.raises(ValueError, match=r'"step:8", the start of the last window\.$'):
        analyzers.path_geometry(run)
    recorder.close()
    assert internal.default_reference(trajstore.open_run(run.location)) == "final"
