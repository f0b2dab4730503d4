"""Test ``analyzers._engine.probes`` on random gradients."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from analyzers._engine.probes import CALIBRATION_STEPS, error_ratios, probe_rounding
from trajstore import Recorder, open_run
from trajstore.format.rows import decode_probes, encode_probes


def record(path: Path, *, heavy: float) -> None:
    """Record random gradients whose first 200 elements are larger by the factor `heavy`."""
    x = torch.nn.Parameter(torch.zeros(9000))
    sizes = torch.ones(9000)
    # Neighbouring elements belong to different probes, so their products cause no errors.
    sizes[:200] = heavy
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD([x], lr=0.1)
    model = torch.nn.ParameterDict({"x": x})
    with Recorder(path, model, optimizer, sketch_bits=4096, probes=512) as recorder:
        for _ in range(3 * CALIBRATION_STEPS):
            x.grad = sizes * torch.randn(9000, generator=generator)
            recorder.measure("same")
            optimizer.step()


def test_error_ratio_of_even_gradients_is_near_one(tmp_path: Path):
    record(tmp_path / "run", heavy=1.0)
    ratios = error_ratios(open_run(tmp_path / "run"), np.array([0, 40, 95]))
    assert (abs(ratios - 1) < 0.35).all()


def test_error_ratio_of_heavy_neighbours_is_below_one(tmp_path: Path):
    record(tmp_path / "run", heavy=100.0)
    ratios = error_ratios(open_run(tmp_path / "run"), np.array([0, 40, 95]))
    assert (ratios < 0.5).all()


def test_error_ratios_of_measurements_are_one(tmp_path: Path):
    record(tmp_path / "run", heavy=100.0)
    same = open_run(tmp_path / "run").measured("same")
    assert error_ratios(same, np.array([0, 5])).tolist() == [1.0, 1.0]


def test_error_ratio_of_an_exact_run_is_one(exact_run: Path):
    assert error_ratios(open_run(exact_run), np.array([3])).tolist() == [1.0]


def test_rounding_of_probes_has_the_stated_variance():
    rng = np.random.default_rng(4)
    probes = np.exp(2 * rng.standard_normal((2000, 2, 64)))
    # Some probes are below the smallest normal number of float16.
    probes[:, :, 1:8] *= 1e-3
    stored = encode_probes(probes)
    _, displacement = decode_probes(stored)
    errors = displacement - probes[:, 1]
    stated = probe_rounding(stored)
    np.testing.assert_array_equal(errors[stated == 0], 0)
    z = errors[stated > 0] / np.sqrt(stated[stated > 0])
    assert np.mean(z**2) == pytest.approx(1, rel=0.03)
    assert abs(z).max() < np.sqrt(3) + 0.01
