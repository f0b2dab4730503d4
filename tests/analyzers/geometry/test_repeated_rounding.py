"""Test errors that repeat in every step of descent on all data, whose gradients hardly turn."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import analyzers
from analyzers._engine.arrays.geometry import QUANTITIES

torch = pytest.importorskip("torch")

from trajstore import Recorder

SEEDS = range(4)
FLOORS = {torch.float32: 2.0**-23, torch.float64: 2.0**-26}


class Descent(NamedTuple):
    """Recordings of one descent with different signs, and the true quantities."""

    paths: list[Path]
    target: dict[str, Any]
    true: dict[str, Any]  # by quantity, float64 (step,)


def descend(folder: Path, size: int, dtype: Any, n_steps: int = 60) -> Descent:
    """Record gradient descent on a quadratic function, far from its minimum."""
    rng = np.random.default_rng(size)
    curvatures = torch.tensor(np.geomspace(1, 0.01, size), dtype=dtype)
    best = torch.tensor(rng.normal(size=size), dtype=dtype)
    x = torch.zeros(size, dtype=dtype, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.02)
    paths = [folder / f"{size}-{seed}.zarr" for seed in SEEDS]
    recorders = [
        Recorder(path, {"x": x}, optimizer, total_steps=n_steps, seed=seed)
        for seed, path in zip(SEEDS, paths, strict=True)
    ]
    vectors = []
    for _ in range(n_steps):
        x.grad = (curvatures * (x - best)).detach()
        vectors.append([v.detach().double().numpy().copy() for v in (x.grad, x)])
        optimizer.step()
    for recorder in recorders:
        recorder.close()
    gradients, iterates = np.array(vectors).swapaxes(0, 1)
    away = iterates - best.double().numpy()
    product, squares = (gradients * away).sum(1), (gradients**2).sum(1)
    distance = np.sqrt((away**2).sum(1))
    true = {
        "gamma": product / np.sqrt(squares) / distance,
        "rsi": product / distance**2,
        "eb": np.sqrt(squares) / distance,
        "lolr": product / squares,
        "distance": distance,
    }
    return Descent(paths, {"x": best.numpy()}, true)


@pytest.mark.parametrize("size", [300, 1000, 1500])
def test_errors_of_full_batches_have_no_common_part(tmp_path: Path, size: int):
    """Sketches of 512, 1024 and 2048 numbers of 16 bits: their product is nearly that of float32."""
    descent = descend(tmp_path, size, torch.float64)
    scores = []
    for path in descent.paths:
        found = analyzers.path_geometry(path, reference=descent.target).compute()
        error = found["lolr"].values - descent.true["lolr"]
        scores.append(error / found["lolr_stderr"].values)
        # Means show what all steps have in common.
        means = analyzers.range_means(found, n_ranges=2).compute()
        for q in QUANTITIES:
            halves = descent.true[q].reshape(2, -1).mean(1)
            z = (means[q].values - halves) / means[f"{q}_stderr"].values
            assert np.abs(z).max() < 4
    assert 0.7 < np.sqrt(np.square(scores).mean()) < 1.25
    # Steps and seeds are independent.
    assert abs(np.mean(scores)) < 4 / np.sqrt(np.size(scores))


@pytest.mark.parametrize("dtype", list(FLOORS))
def test_stated_errors_contain_rounding(tmp_path: Path, dtype: Any):
    descent = descend(tmp_path, 40, dtype, n_steps=30)
    floor = FLOORS[dtype]
    for path in descent.paths[:2]:
        found = analyzers.path_geometry(path, reference=descent.target).compute()
        means = analyzers.range_means(found, n_ranges=3).compute()
        assert found.attrs["rounding_error"] == floor
        for q in QUANTITIES:
            true, stderr = descent.true[q], found[f"{q}_stderr"].values
            least = floor * np.abs(true) * (1 - 1e-5)
            assert (stderr >= least).all()
            assert (np.abs(found[q].values - true) <= 4 * stderr).all()
            # Rounding does not shrink in means.
            mean = means[q].values
            assert (means[f"{q}_stderr"].values >= 0.5 * floor * np.abs(mean)).all()
        assert found["distance_stderr"].values[0] < 2 * floor * found["distance"][0]
