"""Test ``analyzers.curvature.smoothness`` against whole gradients and on quadratics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

import analyzers
from tests.analyzers.conftest import BASE, DIFFERENT
from tests.analyzers.conftest import record as record_training
from tests.analyzers.paths import norms, path_of, products
from trajstore.reading.run import Run, open_run

torch = pytest.importorskip("torch")

from trajstore import Recorder
from trajstore.tracking.backends.choose import CHOICE

N_BATCHES, N_STEPS, LR = 3, 12, 0.05


def fails(*_args: object, **_kwargs: object) -> None:
    raise AssertionError("computed")


@pytest.mark.parametrize("name", ["sgd", "base", "adam", "cosine"])
def test_equals_the_smoothness_of_whole_gradients(
    paper_runs: dict[str, Run], name: str
):
    run = paper_runs[name]
    path = path_of(run)
    expected = norms(np.diff(path.gradients, axis=0)) / norms(path.updates[:-1])
    found = analyzers.smoothness(run).compute()
    assert np.isnan(found.smoothness.values[0])
    np.testing.assert_allclose(found.smoothness.values[1:], expected, rtol=1e-5)
    change = products(np.diff(path.gradients, axis=0), path.updates[:-1])
    curvature = change / norms(path.updates[:-1]) ** 2
    if name == "sgd":
        # Products cancel, so the tolerance is relative to |g| / |u| = 1 / lr.
        np.testing.assert_allclose(
            found.curvature.values[1:], curvature, rtol=1e-4, atol=1e-4
        )
    else:
        assert np.isnan(found.curvature.values).all()


def test_does_not_depend_on_a_basis(tmp_path: Path, paper_runs: dict[str, Run]):
    record_training(tmp_path / "run.zarr", BASE | DIFFERENT["sgd"], basis=0)
    with dask.config.set(scheduler=fails):
        found = analyzers.smoothness(open_run(tmp_path / "run.zarr"))
    expected = analyzers.smoothness(paper_runs["sgd"]).compute()
    for name, values in found.compute().items():
        assert np.isfinite(values[1:]).all()
        np.testing.assert_array_equal(values, expected[name])


def test_layers_are_separated(exact_run: Path):
    run = open_run(exact_run)
    path = path_of(run)
    found = analyzers.smoothness(run, layers=True).compute().smoothness
    assert found.dims == ("step", "layer")
    for name, offset, size in zip(
        run.layout.names, run.layout.offsets, run.layout.sizes, strict=True
    ):
        part = slice(int(offset), int(offset + size))
        changes = norms(np.diff(path.gradients[:, part], axis=0))
        expected = changes / norms(path.updates[:-1, part])
        np.testing.assert_allclose(
            found.sel(layer=name).values[1:], expected, rtol=2e-5
        )


def test_is_lazy_and_does_not_depend_on_chunks(
    example_run: Path, monkeypatch: pytest.MonkeyPatch
):
    run = open_run(example_run)
    with dask.config.set(scheduler=fails):
        lazy = analyzers.smoothness(run)
    whole = lazy.compute()
    monkeypatch.setattr("analyzers._engine.tables.VALUES", 28)
    cut = analyzers.smoothness(run)
    assert len(cut.chunksizes["step"]) > 5
    xr.testing.assert_allclose(cut.compute(), whole, rtol=1e-12)
    assert whole.sel(epoch=2).sizes["step"] == 12


class Quadratics:
    """Losses (x - c)^T A (x - c) / 2, one for each batch, where x joins two tensors."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        factors = rng.standard_normal((N_BATCHES, 30, 30)) / 5
        self.A = torch.from_numpy(factors @ factors.transpose(0, 2, 1)).float()
        self.centres = torch.from_numpy(rng.standard_normal((N_BATCHES, 30))).float()
        self.model = torch.nn.Module()
        self.model.a = torch.nn.Parameter(torch.zeros(10))
        self.model.b = torch.nn.Parameter(torch.zeros(20))

    def loss(self, batch: int) -> Any:
        away = torch.cat([self.model.a, self.model.b]) - self.centres[batch]
        return 0.5 * away @ self.A[batch] @ away


def record(path: Path, **options: Any) -> Quadratics:
    problem = Quadratics()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=LR)
    with Recorder(path, problem.model, optimizer, **options) as recorder:
        for step in range(N_STEPS):
            batch = step % N_BATCHES
            optimizer.zero_grad()
            loss = problem.loss(batch)
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
            if step % 2 == 1:
                optimizer.zero_grad()
                after = problem.loss(batch)
                after.backward()
                recorder.measure("same_batch", loss=after)
    return problem


@pytest.fixture(params=["cpu", "accelerator"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure by compiled loops, or by the backend of accelerators."""
    if request.param == "accelerator":
        monkeypatch.setenv(CHOICE, "eager")


@pytest.mark.usefixtures("device")
def test_a_measurement_has_products_with_the_gradient_of_the_previous_step(
    tmp_path: Path,
):
    """Test the definition of `grad_dot_previous` in a measurement."""
    record(tmp_path / "run.zarr", exact=True)
    run = open_run(tmp_path / "run.zarr")
    gradients = path_of(run).gradients
    measured = run.measured("same_batch")
    after = measured.stored.large_rows(
        "gradient", slice(0, 6), slice(0, run.layout.size)
    )
    found = measured.steps["grad_dot_previous"].sum("layer").values
    np.testing.assert_array_equal(measured.stored.step_numbers, [2, 4, 6, 8, 10, 12])
    expected = products(
        after.astype(np.float64), gradients[measured.stored.step_numbers - 1]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Products of successive steps ignore the measurement in between.
    step_products = run.steps["grad_dot_previous"].sum("layer").values[1:]
    np.testing.assert_allclose(
        step_products, products(gradients[1:], gradients[:-1]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "sketched"])
def test_the_same_batch_has_the_smoothness_of_its_quadratic(
    tmp_path: Path, exact: bool
):
    kind = {"exact": True} if exact else {"sketch_bits": 64, "probes": 16}
    problem = record(tmp_path / "run.zarr", **kind)
    run = open_run(tmp_path / "run.zarr")
    found = analyzers.smoothness(run, measurement="same_batch").compute()
    np.testing.assert_array_equal(found.step, [2, 4, 6, 8, 10, 12])
    x = np.zeros(30)
    A, centres = problem.A.double().numpy(), problem.centres.double().numpy()
    smooth, curved = [], []
    for step in range(N_STEPS):
        batch = step % N_BATCHES
        u = -LR * A[batch] @ (x - centres[batch])
        smooth.append(np.linalg.norm(A[batch] @ u) / np.linalg.norm(u))
        curved.append(u @ A[batch] @ u / (u @ u))
        x = x + u
    np.testing.assert_allclose(found.smoothness.values, smooth[1::2], rtol=1e-4)
    np.testing.assert_allclose(found.curvature.values, curved[1::2], rtol=1e-4)
    # Smoothness is a lower bound of the largest eigenvalue, as documented.
    largest = np.linalg.eigvalsh(A).max(1)[np.arange(1, N_STEPS, 2) % N_BATCHES]
    assert (found.smoothness.values < largest).all()
    assert (found.curvature.values <= found.smoothness.values).all()


def test_changes_below_rounding_are_nan(tmp_path: Path):
    model = torch.nn.Linear(50, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(tmp_path / "run.zarr", model, optimizer, exact=True) as recorder:
        for step in range(4):
            # The gradient is constant at first and reversed in the last step.
            optimizer.zero_grad()
            (model(torch.ones(1, 50)).sum() * (-1 if step == 3 else 1)).backward()
            recorder.log(loss=0.0)
            optimizer.step()
    found = analyzers.smoothness(open_run(tmp_path / "run.zarr")).compute()
    assert np.isnan(found.smoothness.values).tolist() == [True, True, True, False]
    np.testing.assert_allclose(found.smoothness.values[3], 2 / 0.01, rtol=1e-4)


def test_a_missing_measurement_names_the_option(example_run: Path):
    with pytest.raises(KeyError, match=r"'same_batch'.*--same-batch-every"):
        analyzers.smoothness(open_run(example_run), measurement="same_batch")


def test_noise_instead_of_gradients_has_the_level_of_noise(
    paper_runs: dict[str, Run], only: Callable[..., Any]
):
    """For independent gradients, |g_k - g_(k-1)|^2 is twice |g|^2 on average."""
    [run] = only(paper_runs, "noise")
    path = path_of(run)
    found = analyzers.smoothness(run).compute().smoothness.values[1:]
    ratio = found * norms(path.updates[:-1]) / norms(path.gradients[1:])
    # With 21 parameters and 47 pairs, the mean has an error of about 5 percent.
    assert abs(np.mean(ratio**2) - 2) < 0.5


def test_changes_of_gradients_that_are_rounding_are_not_known(tmp_path: Path):
    """After descent has converged to rounding, the ratio would be anything."""
    rng = np.random.default_rng(0)
    A, b = rng.normal(size=(40, 8)), rng.normal(size=40)
    x, curvatures = np.zeros(8), np.linalg.eigvalsh(A.T @ A / 40)
    path, tensor = tmp_path / "run.zarr", torch.from_numpy(x)
    with Recorder(path, {"x": tensor}, None, exact=True, total_steps=150) as recorder:
        for _ in range(150):
            gradient = A.T @ (A @ x - b) / 40
            with recorder.step({"x": torch.from_numpy(gradient)}):
                x -= gradient / curvatures[-1]
    found = analyzers.smoothness(open_run(path))["smoothness"].values
    known = found[np.isfinite(found)]
    assert 20 < len(known) < 100
    assert np.isnan(found[-40:]).all()
    assert (known > 0.98 * curvatures[0]).all()
    assert (known < 1.02 * curvatures[-1]).all()
