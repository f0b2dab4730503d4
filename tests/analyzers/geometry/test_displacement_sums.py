"""Test that recorded sums of displacements sharpen distances, with honest errors."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch")

from torch import nn
from torch.optim import AdamW, Optimizer

import analyzers
from tests.analyzers.geometry.seeded import Seeded, train
from trajstore.reading.run import Run
from trajstore.sketch.displacement_sum import DecodedSum

FOLDED: dict[str, Any] = {"widths": (64, 100, 20), "sketch_bits": 4096, "probes": 256}
"""A net of 8520 parameters, which a sketch of 4096 signs folds."""

PACKED: dict[str, Any] = {"widths": (32, 60, 8), "sketch_bits": 4096, "probes": 256}
"""A net of 2468 parameters, with a number of the sketch for each of them."""


def adam(model: nn.Module) -> Optimizer:
    return AdamW(model.parameters(), lr=0.003)


def geometries(runs: list[Run], **arguments: Any) -> list[xr.Dataset]:
    return [
        analyzers.path_geometry(run, **arguments).compute(scheduler="sync")
        for run in runs
    ]


def with_stored(run: Run, stored: Any) -> Run:
    kept = {f.name: getattr(run.stored, f.name) for f in fields(run.stored)}
    return Run(stored(**(kept | {"_arrays": {}, "_reported": set()})))


def without_sums(run: Run) -> Run:
    """Return a run as if its store held no sums of displacements."""

    class Without(type(run.stored)):  # type: ignore[misc]
        def displacement_sum(self, window: int) -> None:
            del window

    return with_stored(run, Without)


@pytest.fixture(scope="module", params=[FOLDED, PACKED], ids=["folded", "packed"])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Seeded:
    return train(
        tmp_path_factory.mktemp("sums"), adam, n_seeds=8, n_steps=64, **request.param
    )


def errors_of(found: list[xr.Dataset], truth: Any, name: str) -> tuple[Any, Any]:
    error = np.array([g[name].values for g in found]) - truth
    stderr = np.array([g[f"{name}_stderr"].values for g in found])
    # The first step of a run has no error.
    return error, error / np.maximum(stderr, 1e-12)


def rms(values: Any) -> Any:
    return np.sqrt(np.mean(values**2))


def test_sums_sharpen_distances_and_errors_stay_honest(trained: Seeded):
    assert trained.runs[0].spec.displacement_sum
    exact, found = trained.exact(), geometries(trained.runs)
    before = geometries([without_sums(run) for run in trained.runs])
    middle = slice(16, 48)
    steps, means = [], []
    truth = exact["distance"].reshape(-1, 16).mean(1)
    for geometry in (found, before):
        error, z = errors_of(geometry, exact["distance"], "distance")
        steps.append((rms(error[:, middle]), rms(z[:, middle])))
        averaged = [analyzers.epoch_means(g) for g in geometry]
        error, z = errors_of(averaged, truth, "distance")
        means.append((rms(error[:, 1:3]), rms(z[:, 1:3])))
    assert steps[0][0] < 0.75 * steps[1][0]
    assert means[0][0] < 0.4 * means[1][0]
    # Errors of neighbouring steps are alike, so these are a few dozen values.
    assert 0.8 < steps[0][1] < 1.35
    assert 0.6 < means[0][1] < 1.4


def test_errors_of_means_know_the_sum(trained: Seeded):
    exact, found = trained.exact(), geometries(trained.runs)
    means = [analyzers.epoch_means(g) for g in found]
    for name in ("gamma", "eb", "rsi"):
        truth = exact[name].reshape(-1, 16).mean(1)
        _, z = errors_of(means, truth, name)
        # Sixteen values.
        assert 0.55 < rms(z[:, 1:3]) < 1.5, name


def test_sums_sharpen_the_distances_of_layers(trained: Seeded):
    bounds = np.cumsum([0, *trained.sizes])[:-1]
    squares = np.add.reduceat((trained.x[:-1] - trained.x[-1]) ** 2, bounds, axis=1)
    truth = np.sqrt(squares).reshape(-1, 16, len(bounds)).mean(1)
    large = np.flatnonzero(np.array(trained.sizes) > 200)
    errors, scores = [], []
    for runs in (trained.runs, [without_sums(run) for run in trained.runs]):
        means = [analyzers.epoch_means(g) for g in geometries(runs, layers=True)]
        by_epoch = [mean.transpose("epoch", "layer") for mean in means]
        error, z = errors_of(by_epoch, truth, "distance")
        errors.append(rms(error[:, 1:3][..., large]))
        scores.append(rms(z[:, 1:3][..., large]))
    assert errors[0] < 0.6 * errors[1]
    assert 0.6 < scores[0] < 1.4


def test_precise_sums_know_that_anchors_are_rounded(tmp_path: Path):
    """With 16 bits a number, most of the error is the rounding error of the next anchor."""
    options = PACKED | {"sketch_bits": 1 << 16, "steps_per_epoch": 32}
    trained = train(tmp_path, adam, n_seeds=1, n_steps=512, **options)
    assert trained.runs[0].spec.displacement_sum
    truth = trained.exact()["distance"].reshape(-1, 32).mean(1)
    means = [analyzers.epoch_means(g) for g in geometries(trained.runs)]
    _, z = errors_of(means, truth, "distance")
    # Fourteen independent values.
    assert 0.5 < rms(z[:, 1:-1]) < 1.5


def test_a_sum_that_does_not_fit_is_left_out(trained: Seeded):
    run = trained.runs[0]

    class Foreign(type(run.stored)):  # type: ignore[misc]
        def displacement_sum(self, window: int) -> Any:
            total = super().displacement_sum(window)
            return total and DecodedSum(-50 * total.fold, total.energy)

    [found] = geometries([with_stored(run, Foreign)])
    [expected] = geometries([without_sums(run)])
    window = slice(16, 32)
    for name in ("distance", "distance_stderr", "gamma_stderr"):
        np.testing.assert_allclose(found[name][window], expected[name][window])


def test_older_stores_have_no_sums(trained: Seeded):
    run = trained.runs[0]
    spec = replace(run.spec, displacement_sum=False)
    document = replace(run.stored.document, spec=spec)
    older = Run(replace(run.stored, document=document, _arrays={}, _reported=set()))
    [found], [expected] = geometries([older]), geometries([without_sums(run)])
    np.testing.assert_array_equal(found.distance, expected.distance)
