"""Compare small runs, recorded in float64, with their iterates: errors are as large as stated."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import trajstore
from analyzers import path_geometry

SIZE, STEPS = 60, 150
RNG = np.random.default_rng(1)
MINIMUM = RNG.standard_normal(SIZE)
ROTATION, _ = np.linalg.qr(RNG.standard_normal((SIZE, SIZE)))
HESSIAN = ROTATION * np.logspace(-2, 0, SIZE) @ ROTATION.T


@pytest.fixture(scope="module")
def descent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A recording of gradient descent on a quadratic with its minimum at `MINIMUM`, and its iterates."""
    path = tmp_path_factory.mktemp("tiny") / "run"
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, dtype=torch.float64, generator=generator, requires_grad=True)
    iterates = []
    with trajstore.Recorder(path, {"x": x}, None) as recorder:
        for _ in range(STEPS):
            iterates.append(x.detach().numpy().copy())
            x.grad = torch.from_numpy(HESSIAN @ (iterates[-1] - MINIMUM))
            with recorder.step(), torch.no_grad():
                x -= 0.9 * x.grad
    return path, np.array(iterates)


def test_stated_errors_of_a_tiny_network_are_true(descent: tuple[Path, np.ndarray]):
    path, iterates = descent
    x = iterates - MINIMUM
    g = x @ HESSIAN
    distance, norm = np.linalg.norm(x, axis=1), np.linalg.norm(g, axis=1)
    product = (g * x).sum(1)
    expected = {
        "gamma": product / (distance * norm),
        "rsi": product / distance**2,
        "eb": norm / distance,
        "distance": distance,
    }
    result = path_geometry(path, reference={"x": MINIMUM}).compute()
    for name, values in expected.items():
        stderr = result[f"{name}_stderr"].values
        # At the borders of windows, there are no errors but rounding in float32.
        known = stderr > 1e-5 * values
        assert known.sum() > 50
        z = (result[name].values - values)[known] / stderr[known]
        # The rms of 50 independent numbers scatters by 0.1.
        assert 0.75 < np.sqrt(np.mean(z**2)) < 1.3, name
