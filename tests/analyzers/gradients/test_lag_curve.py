"""Test ``analyzers.lag_curve``."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyzers
import trajstore
from tests.analyzers.quadratic import descend

pytest.importorskip("torch")


def test_means_are_those_of_whole_gradients(exact_run: Path):
    run = trajstore.open_run(exact_run)
    gradients = run.stored.array("gradient")[:].astype(float)
    units = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    curve = analyzers.lag_curve(run, lags=[1, 7, 58, 90], n_pairs=59)
    for lag, n in ((1, 59), (7, 53), (58, 2)):
        cosines = (units[lag:] * units[:-lag]).sum(1)
        found = curve.sel(lag=lag)
        assert int(found.n_pairs) == n == len(cosines)
        assert float(found.cosine) == pytest.approx(cosines.mean(), abs=1e-6)
        assert float(found.spread) == pytest.approx(cosines.std(), abs=1e-6)
        assert float(found.cosine_stderr) == 0
    assert np.isnan(curve.cosine.sel(lag=90))


def test_probes_agree_with_whole_gradients(example_run: Path, exact_run: Path):
    found, exact = (
        analyzers.lag_curve(trajstore.open_run(path), lags=[1, 5, 20])
        for path in (example_run, exact_run)
    )
    error = abs(found.cosine - exact.cosine)
    assert (error < 4 * found.cosine_stderr).all()
    assert (found.cosine_stderr < 0.1).all()
    assert (found.cosine_stderr > 0.002).all()


@pytest.mark.parametrize("options", [{"lags": []}, {"lags": [0]}, {"n_pairs": 0}])
def test_numbers_below_one_are_refused(example_run: Path, options: dict[str, Any]):
    with pytest.raises(ValueError, match="must be at least 1"):
        analyzers.lag_curve(trajstore.open_run(example_run), **options)


def test_one_step_is_too_few(tmp_path: Path):
    run = descend(tmp_path / "run.zarr", [1.0], [1.0])
    with pytest.raises(
        ValueError, match="holds 1 steps; a pair of gradients needs two"
    ):
        analyzers.lag_curve(run)


def test_the_error_of_the_mean_is_that_of_the_mean(tmp_path: Path):
    """Means of 60 pairs are far more precise than pairs, by as much as the curve states."""
    torch = pytest.importorskip("torch")
    from tests.analyzers.geometry.seeded import train

    trained = train(
        tmp_path,
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        n_seeds=8,
        probes=128,
    )
    unit = trained.g / np.linalg.norm(trained.g, axis=1, keepdims=True)
    lags = [1, 2, 5, 9]
    exact = np.array([(unit[lag:] * unit[:-lag]).sum(1).mean() for lag in lags])
    curves = [analyzers.lag_curve(r, lags=lags, n_pairs=64) for r in trained.runs]
    error = np.array([curve.cosine - exact for curve in curves])
    stderr = np.array([curve.cosine_stderr for curve in curves])
    z = error / stderr
    # 32 values, correlated between lags.
    assert 0.5 < np.sqrt((z**2).mean()) < 1.6
    assert (stderr < 0.5 / np.sqrt(128)).all()
