"""Test ``analyzers.curvature.update_products`` against whole gradients and updates."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import analyzers
from tests.analyzers.conftest import BASE, DIFFERENT, record
from tests.analyzers.paths import norms, path_of, products
from trajstore.reading.run import Run, open_run

torch = pytest.importorskip("torch")

from trajstore import Recorder


@pytest.mark.parametrize(
    ("name", "rule"),
    [("sgd", "plain descent"), ("noise", "momentum"), ("base", "momentum")],
)
def test_products_are_exact_where_the_rule_is_known(
    paper_runs: dict[str, Run], name: str, rule: str
):
    run = paper_runs[name]
    found = analyzers.update_products(run)
    assert found.attrs["rule"] == rule
    check_against_the_path(run, found, rtol=1e-5)
    assert not found.before_stderr.any()
    assert not found.after_stderr.any()


def check_against_the_path(run: Run, found: xr.Dataset, rtol: float) -> None:
    path = path_of(run)
    scale = norms(path.gradients) * norms(path.updates)
    before = products(path.gradients, path.updates)
    after = products(path.gradients[1:], path.updates[:-1])
    np.testing.assert_allclose((found.before.values - before) / scale, 0, atol=rtol)
    difference = found.after.values[:-1] - after
    np.testing.assert_allclose(difference / scale[:-1], 0, atol=rtol)
    assert np.isnan(found.after.values[-1])
    # If the cosines did not vary, the comparison would prove little.
    assert np.std(before / scale) > 0.01 or np.std(after / scale[:-1]) > 0.01


def test_momentum_with_a_falling_learning_rate_is_exact(
    paper_runs: dict[str, Run],
):
    found = analyzers.update_products(paper_runs["cosine"])
    assert found.attrs["rule"] == "momentum"
    # At the end, updates are as short as the rounding of the parameters.
    run = paper_runs["cosine"]
    path = path_of(run)
    first = slice(0, 36)
    scale = (norms(path.gradients) * norms(path.updates))[first]
    expected = products(path.gradients, path.updates)[first]
    np.testing.assert_allclose(
        (found.before.values[first] - expected) / scale, 0, atol=1e-4
    )


def test_adam_without_recorded_updates_is_unknown(paper_runs: dict[str, Run]):
    found = analyzers.update_products(paper_runs["adam"])
    assert found.attrs["rule"] == "unknown"
    assert np.isnan(found.before.values).all()


def test_whole_updates_are_exact(tmp_path: Path):
    settings = BASE | {"optimizer": "adam", "lr": 0.01}
    record(tmp_path / "run.zarr", settings, updates=True)
    run = open_run(tmp_path / "run.zarr")
    found = analyzers.update_products(run)
    assert found.attrs["rule"] == "probes"
    check_against_the_path(run, found, rtol=1e-6)
    assert not found.before_stderr.any()


def test_errors_of_probes_match_their_standard_errors(
    tmp_path: Path, train_small: Callable[..., Any]
):
    """Use several recordings, because errors of neighbouring steps are correlated."""
    train_small(partial(Recorder, tmp_path / "exact.zarr"), exact=True, updates=True)
    exact = analyzers.update_products(open_run(tmp_path / "exact.zarr"))
    assert exact.attrs["rule"] == "probes"
    z = []
    for seed in range(8):
        path = tmp_path / f"{seed}.zarr"
        options = {"sketch_bits": 256, "probes": 64, "seed": seed}
        train_small(partial(Recorder, path), updates=True, **options)
        found = analyzers.update_products(open_run(path))
        for name in ("before", "after"):
            error = (found[name] - exact[name]) / found[f"{name}_stderr"]
            z.append(error.values[[4, 24, 44]])
    # The 48 values are partly dependent; the deviation of 27 values has an error of 0.14.
    values = np.concatenate(z)
    assert abs(values.mean()) < 0.4
    assert 0.7 < values.std() < 1.3


@pytest.mark.parametrize("basis", [0, 3])
def test_updates_as_short_as_rounding_may_be_plain_descent(tmp_path: Path, basis: int):
    """For parameters of about 0.1, a change of 1e-7 is about ten units in the last place."""
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
    path = tmp_path / "run.zarr"
    options: dict[str, Any] = {"steps_per_epoch": 4, "sketch_bits": 64, "basis": basis}
    with Recorder(path, model, optimizer, **options):
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.randn(8, 20)).square().mean().backward()
            optimizer.step()
    run = open_run(path)
    steps = run.steps[["update_sq", "grad_sq"]].astype(np.float64)
    # The error exceeds the tolerance of 0.1 percent, which ignores the parameters.
    assert (abs(steps.update_sq / steps.grad_sq * 1e14 - 1) > 4e-3).any()
    assert analyzers.update_products(run).attrs["rule"] == "plain descent"


def test_exact_products_do_not_depend_on_a_basis(
    tmp_path: Path, paper_runs: dict[str, Run]
):
    record(tmp_path / "run.zarr", BASE | DIFFERENT["sgd"], basis=0)
    found = analyzers.update_products(open_run(tmp_path / "run.zarr"))
    expected = analyzers.update_products(paper_runs["sgd"])
    assert found.attrs["rule"] == expected.attrs["rule"] == "plain descent"
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_several_rates_are_not_plain_descent(
    paper_runs: dict[str, Run],
):
    run = paper_runs["sgd"]
    assert analyzers.update_products(run).attrs["rule"] == "plain descent"
    group = replace(run.group, metrics=(*run.metrics, "lr_1"))
    several = Run(replace(run.stored, group=group))
    assert analyzers.update_products(several).attrs["rule"] == "unknown"


@pytest.mark.parametrize("basis", [0, 3])
def test_ascent_and_weight_decay_are_not_plain_descent(tmp_path: Path, basis: int):
    kinds: dict[str, dict[str, Any]] = {
        "ascent": {"maximize": True},
        "decay": {"weight_decay": 0.1},
        "plain": {},
    }
    for name, options in kinds.items():
        torch.manual_seed(0)
        model = torch.nn.Linear(20, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)
        path = tmp_path / f"{name}.zarr"
        with Recorder(path, model, optimizer, exact=True, basis=basis):
            for _ in range(4):
                optimizer.zero_grad()
                model(torch.randn(8, 20)).square().mean().backward()
                optimizer.step()
        rule = analyzers.update_products(open_run(path)).attrs["rule"]
        assert rule == ("plain descent" if name == "plain" else "unknown"), name
