"""Test ``analyzers.curvature.scale_invariance`` on functions with known invariance."""

from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

import analyzers
from tests.analyzers.curvature.networks import record_network
from tests.analyzers.paths import norms, path_of, products
from trajstore.reading.run import Run, open_run

torch = pytest.importorskip("torch")

from torch import nn

from trajstore import Recorder


class KnownInvariance(nn.Module):
    """Depends on the direction of `a`, on `b`, and on the norm of `c`."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(5, 8))
        self.b = nn.Parameter(torch.randn(8))
        self.c = nn.Parameter(torch.randn(20))

    def forward(self, x: Any) -> Any:
        weights = self.a / self.a.norm()
        return (x @ weights.T).tanh().sum(1) + x @ self.b + self.c.norm()


def record(path: Path, *, lr: float = 0.05, **options: Any) -> Run:
    torch.manual_seed(0)
    model = KnownInvariance()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **options)
    with Recorder(path, model, optimizer, exact=True, steps_per_epoch=10):
        for _ in range(40):
            optimizer.zero_grad()
            model(torch.randn(16, 8)).square().mean().backward()
            optimizer.step()
    return open_run(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return record(tmp_path_factory.mktemp("invariance") / "run.zarr")


def test_separates_directions_from_scales(run: Run):
    found = analyzers.scale_invariance(run).compute()
    assert found.layer.values.tolist() == ["a", "b", "c"]
    assert found.is_invariant.values.tolist() == [True, False, False]
    assert float(found.cosine_max.sel(layer="a")) < 1e-5
    # The loss depends only on the norm of c, so its gradient is parallel to c.
    np.testing.assert_allclose(abs(found.cosine.sel(layer="c")), 1, rtol=1e-5)
    path = path_of(run)
    for name, offset, size in zip(
        run.layout.names, run.layout.offsets, run.layout.sizes, strict=True
    ):
        part = slice(int(offset), int(offset + size))
        w, g = path.iterates[:-1, part], path.gradients[:, part]
        expected = products(w, g) / (norms(w) * norms(g))
        of_layer = found.sel(layer=name)
        np.testing.assert_allclose(of_layer.cosine, expected, rtol=1e-5, atol=2e-6)
        if name != "a":
            np.testing.assert_allclose(of_layer.cosine_mean, expected.mean(), rtol=1e-4)
            np.testing.assert_allclose(
                of_layer.cosine_rms, np.sqrt((expected**2).mean()), rtol=1e-4
            )
            np.testing.assert_allclose(
                of_layer.cosine_max, np.abs(expected).max(), rtol=1e-4
            )
        squares = norms(w) ** 2
        np.testing.assert_allclose(
            of_layer.growth, squares[-1] - squares[0], rtol=1e-4, atol=1e-5
        )


def test_the_norm_of_an_invariant_layer_grows_by_its_updates(run: Run):
    found = analyzers.scale_invariance(run).compute()
    ratio = (found.growth / found.expected_growth).values
    np.testing.assert_allclose(ratio[0], 1, rtol=1e-3)
    assert (np.abs(ratio[1:] - 1) > 0.1).all()


@pytest.mark.parametrize(
    "options", [{"weight_decay": 0.01}, {"momentum": 0.9}], ids=str
)
def test_only_plain_descent_has_an_expected_growth(
    tmp_path: Path, options: dict[str, float]
):
    found = analyzers.scale_invariance(record(tmp_path / "run.zarr", **options))
    assert np.isnan(found.expected_growth.values).all()
    # Recorded gradients do not include weight decay.
    assert found.is_invariant.values.tolist() == [True, False, False]


def test_is_lazy(run: Run):
    def fails(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("computed")

    with dask.config.set(scheduler=fails):
        found = analyzers.scale_invariance(run)
    assert found.cosine.sel(epoch=1).sizes == {"step": 10, "layer": 3}


def test_a_run_without_a_basis_is_refused(tmp_path: Path, train_small: Any):
    path = tmp_path / "run.zarr"
    train_small(partial(Recorder, path), basis=0, sketch_bits=64, probes=16)
    with pytest.raises(
        ValueError,
        match=r"^Scale invariance needs the norms of the parameters and their products "
        r"with gradients, which .*run\.zarr does not have: it was recorded with basis=0; "
        r"record with basis=1 or more\.$",
    ):
        analyzers.scale_invariance(open_run(path))


@pytest.mark.parametrize("tolerance", [0, 1, -1e-3])
def test_a_tolerance_out_of_range_is_refused(example_run: Path, tolerance: float):
    with pytest.raises(ValueError, match="between 0 and 1, got"):
        analyzers.scale_invariance(open_run(example_run), tolerance=tolerance)


@pytest.mark.slow
def test_convolutions_before_normalisation_are_scale_invariant(tmp_path: Path):
    run = record_network(
        tmp_path / "run.zarr",
        "digits-resnet",
        optimizer="sgd",
        lr=0.05,
        weight_decay=0.0,
        epochs=2,
    )
    found = analyzers.scale_invariance(run).compute()
    is_convolution = np.array([len(shape) == 4 for shape in run.layout.shapes])
    assert is_convolution.sum() == 9
    np.testing.assert_array_equal(found.is_invariant, is_convolution)
    assert float(found.cosine_max.sel(layer="head.weight")) > 0.1
    growth = (found.growth / found.expected_growth).values[is_convolution]
    np.testing.assert_allclose(growth, 1, rtol=0.05)
