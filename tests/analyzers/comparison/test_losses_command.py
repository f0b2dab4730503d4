"""Test ``traj-analyze losses``."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analyzers.comparison.losses_command import losses
from trajstore.format.attrs import LINES, PLANE
from trajstore.format.run_spec import SchemaError
from trajstore.reading.results import write_results
from trajstore.reading.run import Run, open_run


@pytest.fixture
def run(example_run: Path, tmp_path: Path) -> Run:
    """Return a copy of a run, because results are written next to the store."""
    return open_run(shutil.copytree(example_run, tmp_path / "digits.zarr"))


def lines() -> xr.Dataset:
    return xr.Dataset(
        {"loss": (("epoch", "fraction"), [[2.0, 3.0, 1.0], [1.5, 1.2, 1.0]])},
        {"epoch": [0.0, 4.0], "fraction": [0.0, 0.5, 1.0]},
    )


def plane() -> xr.Dataset:
    return xr.Dataset(
        {
            "loss": (("second", "first"), np.arange(6.0).reshape(2, 3) + 1),
            "explained_variance_ratio": ("component", [0.75, 0.2]),
            "point_loss": ("point", [2.0, 1.0]),
            "projected_loss": ("point", [2.25, 1.0]),
        },
        {
            "first": [-1.0, 0.0, 1.0],
            "second": [-1.0, 1.0],
            "point_first": ("point", [-1.0, 1.0]),
            "point_second": ("point", [0.0, 0.5]),
            "step": ("point", [0, 5]),
        },
    )


def test_losses_are_drawn_and_printed(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_results(run, LINES, lines())
    write_results(run, PLANE, plane())
    losses(run.location)
    printed = " ".join(capsys.readouterr().out.split())
    assert "0 2 3 1 4 1.5 1.5 1" in printed
    assert "shows 95.0% of the variance" in printed
    assert "differ by up to 0.25" in printed
    figures = sorted(path.name for path in (tmp_path / "digits.figures").iterdir())
    assert figures == ["losses-on-plane.png", "losses-towards.png"]


def test_missing_losses_say_how_to_evaluate_them(run: Run):
    with pytest.raises(FileNotFoundError, match=r"traj-train replay .* --lines"):
        losses(run.location)


@pytest.mark.parametrize("shape", [[2, 99999999], [2, -1], [2, "3"], [2], "x", [3, 3]])
def test_falsified_losses_are_refused(run: Run, tmp_path: Path, shape: Any):
    write_results(run, LINES, lines())
    document = tmp_path / "digits.analysis.zarr" / LINES / "loss" / "zarr.json"
    metadata = json.loads(document.read_text())
    document.write_text(json.dumps(metadata | {"shape": shape}))
    with pytest.raises(SchemaError, match="loss"):
        losses(run.location)
