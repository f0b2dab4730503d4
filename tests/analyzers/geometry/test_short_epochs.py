"""Runs with short epochs give the same results, within their errors, as runs without epochs."""

from pathlib import Path

import numpy as np
import pytest

import analyzers
from trajstore.reading.run import open_run

torch = pytest.importorskip("torch")

from tests.trajstore.recording.regression import record, regression

N_STEPS = 240


@pytest.mark.parametrize("steps_per_epoch", [1, 12])
def test_gamma_is_the_same_within_its_errors(tmp_path: Path, steps_per_epoch: int):
    results = []
    for name, options in (
        ("plain", {}),
        ("short", {"steps_per_epoch": steps_per_epoch}),
    ):
        record(tmp_path / name, regression(), N_STEPS, sketch_bits=4096, **options)
        run = open_run(tmp_path / name)
        results.append(analyzers.path_geometry(run).compute())
    plain, short = (result.isel(step=slice(None, -20)) for result in results)
    for name in ("gamma", "rsi", "distance"):
        error = np.hypot(plain[f"{name}_stderr"].values, short[f"{name}_stderr"].values)
        # Where a window begins, the distance is exact up to rounding.
        error += 1e-5 * abs(plain[name].values)
        z = (short[name].values - plain[name].values) / error
        assert abs(z).max() < 5, name
        assert abs(z.mean()) < 1, name
