"""Errors of means over ranges of steps, which consist of windows or of epochs."""

from pathlib import Path

import numpy as np
import pytest

import analyzers
from tests.analyzers.geometry.test_epoch_means import POWER, slow_stderr, synthetic
from tests.analyzers.geometry.test_range_means import one_epoch


@pytest.mark.parametrize("name", POWER)
def test_a_range_of_whole_windows_has_the_errors_of_their_covariances(name: str):
    geometry = one_epoch().assign_attrs(window_starts=[0, 2, 4, 5], n_steps=8)
    means = analyzers.range_means(geometry, n_ranges=2)
    total = geometry[f"{name}_covariance"].values
    np.testing.assert_allclose(
        means[f"{name}_stderr"].values ** 2,
        [total[:4].sum() / 16, total[4:].sum() / 16],
        rtol=1e-12,
    )


@pytest.mark.parametrize("name", POWER)
def test_only_cut_windows_have_the_errors_of_parts(name: str):
    geometry = one_epoch().assign_attrs(window_starts=[0, 2, 5], n_steps=8)
    means = analyzers.range_means(geometry, n_ranges=2)
    # Windows of the steps 0-1, 2-4 and 5-7; the border of the ranges cuts the second one.
    total = geometry[f"{name}_covariance"].values
    before = slow_stderr(geometry, name, [2, 3])
    after = slow_stderr(geometry, name, [4])
    expected = [
        (total[:2].sum() + (2 * before) ** 2) / 16,
        (after**2 + total[5:].sum()) / 16,
    ]
    np.testing.assert_allclose(means[f"{name}_stderr"].values ** 2, expected)


@pytest.mark.parametrize("name", POWER)
def test_independent_errors_of_steps_add_up_in_squares(name: str):
    geometry = one_epoch().assign_attrs(step_errors="independent")
    means = analyzers.range_means(geometry, n_ranges=2)
    squares = geometry[f"{name}_stderr"].values ** 2
    np.testing.assert_allclose(
        means[f"{name}_stderr"].values ** 2,
        [squares[:4].sum() / 16, squares[4:].sum() / 16],
    )


def test_one_range_has_the_errors_of_the_only_epoch():
    geometry = one_epoch().assign_attrs(n_steps=8)
    [whole], [epoch] = (
        analyzers.range_means(geometry, n_ranges=1)["gamma_stderr"].values,
        analyzers.epoch_means(geometry)["gamma_stderr"].values,
    )
    assert whole == pytest.approx(epoch)


def test_ranges_of_whole_epochs_have_the_errors_of_epochs():
    geometry = synthetic()
    geometry = geometry.assign_coords(step=np.arange(8)).assign_attrs(n_steps=8)
    means = analyzers.range_means(geometry, n_ranges=1)
    total = geometry["gamma_covariance"].values.sum()
    assert float(means["gamma_stderr"][0]) == pytest.approx(np.sqrt(total) / 8)


def test_a_tiny_run_says_how_its_errors_add_up(tmp_path: Path):
    torch = pytest.importorskip("torch")
    import trajstore

    generator = torch.Generator().manual_seed(0)
    center = torch.randn(40, generator=generator, dtype=torch.float64)
    curvature = torch.logspace(-3, 0, 40, dtype=torch.float64)
    values, seeds = [], range(6)
    for seed in seeds:
        x = torch.zeros(40, dtype=torch.float64, requires_grad=True)
        recorder = trajstore.Recorder(
            tmp_path / f"{seed}", {"x": x}, None, seed=seed, total_steps=400
        )
        noise = torch.Generator().manual_seed(1)
        with recorder:
            for _ in range(400):
                g = curvature * (x.detach() - center)
                x.grad = g + 0.1 * torch.randn(40, generator=noise, dtype=torch.float64)
                with recorder.step(), torch.no_grad():
                    x -= 0.3 * x.grad
        values.append(analyzers.path_geometry(tmp_path / f"{seed}").compute())
    assert values[0].attrs["step_errors"] == "independent"
    assert (
        len(values[0].attrs["window_starts"])
        == trajstore.open_run(tmp_path / "0").n_windows
    )
    exact = exact_gamma(center.numpy(), curvature.numpy())
    z = []
    for geometry in values:
        means = analyzers.range_means(geometry, n_ranges=7)
        true = [
            exact[first : last + 1].mean()
            for first, last in zip(
                means["step"].values, means["last_step"].values, strict=True
            )
        ]
        z.append((means["gamma"].values - true) / means["gamma_stderr"].values)
    # Errors of the last range contain its last steps, whose distances are nearly 0.
    assert 0.6 < np.sqrt(np.mean(np.square(np.array(z)[:, :-1]))) < 1.4


def exact_gamma(center: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Return gamma of the steps of the run above, from its iterates."""
    import torch

    noise = torch.Generator().manual_seed(1)
    x, iterates, gradients = np.zeros(40), [], []
    for _ in range(400):
        drawn = torch.randn(40, generator=noise, dtype=torch.float64).numpy()
        g = curvature * (x - center) + 0.1 * drawn
        iterates.append(x)
        gradients.append(g)
        x = x - 0.3 * g
    d, g = np.array(iterates) - x, np.array(gradients)
    product: np.ndarray = (g * d).sum(1)
    norms = np.linalg.norm(g, axis=1) * np.linalg.norm(d, axis=1)
    gamma: np.ndarray = product / norms
    return gamma
