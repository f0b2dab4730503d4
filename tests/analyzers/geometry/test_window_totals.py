"""Test that recorded sums of gradients sharpen means, with honest errors."""

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
from trajstore.recording import options

WIDE: dict[str, Any] = {"widths": (32, 100, 8), "sketch_bits": 256, "probes": 1024}
"""A net of 4108 parameters, which a sketch of 256 signs folds."""

MIDDLE = slice(16, 48)


def adam(model: nn.Module) -> Optimizer:
    return AdamW(model.parameters(), lr=0.003)


def geometries(runs: list[Run], **arguments: Any) -> list[xr.Dataset]:
    return [
        analyzers.path_geometry(run, **arguments).compute(scheduler="sync")
        for run in runs
    ]


def without_totals(run: Run) -> Run:
    """Return a run as if its store held no sums of gradients."""
    spec = replace(run.spec, window_folds=0)
    document = replace(run.stored.document, spec=spec)
    return Run(replace(run.stored, document=document, _arrays={}, _reported=set()))


def mean_errors(
    found: list[xr.Dataset], exact: dict[str, Any], name: str
) -> tuple[Any, Any]:
    """Return the errors of the means of epochs 1 and 2, and these over standard errors."""
    means = [analyzers.epoch_means(geometry) for geometry in found]
    truth = exact[name].reshape(-1, 16).mean(1)
    error = np.array([mean[name].values for mean in means]) - truth
    stderr = np.array([mean[f"{name}_stderr"].values for mean in means])
    return error[:, 1:3], (error / stderr)[:, 1:3]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Seeded:
    return train(tmp_path_factory.mktemp("totals"), adam, n_seeds=10, **WIDE)


def test_totals_sharpen_means_and_errors_stay_honest(trained: Seeded):
    assert trained.runs[0].spec.window_folds == 8
    exact, found = trained.exact(), geometries(trained.runs)
    before = geometries([without_totals(run) for run in trained.runs])
    for name in ("gamma", "lolr"):
        error, z = mean_errors(found, exact, name)
        earlier, _ = mean_errors(before, exact, name)
        ratio = np.sqrt((error**2).mean() / (earlier**2).mean())
        assert ratio < 0.6, name
        # Twenty values. In a net this small, few elements share a probe, so distances are better
        # known than stated.
        assert 0.35 < np.sqrt((z**2).mean()) < 1.5, name
        by_step = np.array([g[name].values for g in found]) - exact[name]
        stderr = np.array([g[f"{name}_stderr"].values for g in found])
        z = (by_step / stderr)[:, MIDDLE]
        assert 0.85 < np.sqrt((z**2).mean()) < 1.15, name


def test_totals_sharpen_the_means_of_layers(trained: Seeded):
    bounds = np.cumsum([0, *trained.sizes])[:-1]
    d = trained.x[:-1] - trained.x[-1]
    products, squares = (
        np.add.reduceat(values, bounds, axis=1)
        for values in (trained.g * d, trained.g**2)
    )
    truth = (products / squares).reshape(-1, 16, len(bounds)).mean(1)
    errors, scores = [], []
    for runs in (trained.runs, [without_totals(run) for run in trained.runs]):
        means = [analyzers.epoch_means(g) for g in geometries(runs, layers=True)]
        found = [mean.transpose("epoch", "layer") for mean in means]
        error = np.array([m.lolr.values for m in found]) - truth
        stderr = np.array([m.lolr_stderr.values for m in found])
        errors.append(np.sqrt((error[:, 1:3] ** 2).mean((0, 1))))
        scores.append(np.sqrt(((error / stderr)[:, 1:3] ** 2).mean()))
    assert (errors[0] / errors[1] < 0.75).all()
    assert 0.75 < scores[0] < 1.3


def test_a_total_that_does_not_fit_is_left_out(trained: Seeded):
    run = trained.runs[0]
    stored = run.stored

    class Foreign(type(stored)):  # type: ignore[misc]
        def window_sum(self, window: int) -> Any:
            folds = super().window_sum(window)
            return None if folds is None else -20 * folds

    kept = {field.name: getattr(stored, field.name) for field in fields(stored)}
    [found] = geometries([Run(Foreign(**kept))])
    [expected] = geometries([without_totals(run)])
    window = slice(16, 32)
    np.testing.assert_allclose(found.gamma[window], expected.gamma[window])
    np.testing.assert_allclose(
        found.gamma_stderr[window], expected.gamma_stderr[window]
    )


def test_totals_and_displacements_constrain_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """SGD needs no totals, so record them as for another optimizer."""
    monkeypatch.setattr(options, "SGD", torch.optim.Adam)
    trained = train(
        tmp_path,
        lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.8),
        n_seeds=8,
        **WIDE,
    )
    assert trained.runs[0].spec.window_folds == 8
    exact, found = trained.exact(), geometries(trained.runs)
    assert all((g.uses_window_sum == 1).all() for g in found)
    before = geometries([without_totals(run) for run in trained.runs])
    error, z = mean_errors(found, exact, "gamma")
    earlier, _ = mean_errors(before, exact, "gamma")
    assert np.sqrt((error**2).mean() / (earlier**2).mean()) < 1
    assert 0.5 < np.sqrt((z**2).mean()) < 1.5
