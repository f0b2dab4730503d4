"""Test every analysis on null models: runs in which there is nothing to find.

`TABLE` has an entry for every public analysis of runs. The entry states how to call the
analysis, where its documentation allows NaN, and which values are expected for a recorded
random walk and for a run with noise as labels. The last test fails until a new analysis has
an entry.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

import analyzers
import trajstore

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from tests.analyzers import null_model_checks as checks
from tests.analyzers.null_model_checks import (
    EPOCHS,
    LR,
    N_STEPS,
    STEPS_PER_EPOCH,
    Model,
)
from tests.train.small_workloads import truncate
from train.models.mlp import mlp
from train.protocols.record import record
from train.settings import Training
from train.workloads.catalogue import WORKLOADS


@pytest.fixture(
    scope="module",
    params=[("random-walk", 3), ("random-walk", 0), ("label-noise", 3)],
    ids=["random-walk", "random-walk without a basis", "label-noise"],
)
def model(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Model:
    """Record a net of 17,226 parameters as users would."""
    control, basis = request.param
    path = tmp_path_factory.mktemp("null") / f"{control}.zarr"
    training = Training(
        workload="digits-mlp",
        data="embedded",
        epochs=EPOCHS,
        batch_size=16,
        optimizer="sgd",
        width=64,
        lr=LR,
        control=control,
        full_gradients=True,
        sharpness_every=25,
        sharpness_examples=64,
    )
    with pytest.MonkeyPatch.context() as patch:
        truncate(patch, "digits-mlp", 16 * STEPS_PER_EPOCH)
        small = replace(
            WORKLOADS["digits-mlp"], model=lambda *_: mlp([64, 128, 64, 10])
        )
        patch.setitem(WORKLOADS, "digits-mlp", small)
        record(training, path, sketch_bits=16384, basis=basis)
    run = trajstore.open_run(path)
    assert run.n_steps == N_STEPS
    return Model(run, analyzers.path_geometry(run).compute())


Result = xr.Dataset | xr.DataArray
Check = Callable[[Any, Model], None]
"""Function that asserts that a result has the expected values."""


def to_average(run: trajstore.Run) -> xr.Dataset:
    average = analyzers.average_of_epochs(run, [2, 3])
    return analyzers.path_geometry(run, reference=average)


def no_way_nearer(model: Model) -> Any:
    """Return the steps with RSI <= 0, at which no step along -g reduces the distance."""
    return model.geometry.rsi <= 0


def guarantees_nothing(model: Model) -> Any:
    return (model.geometry.rsi <= 0).any()


def beyond_end(model: Model) -> Any:
    """Return the pairs that reach the last step, whose gradient is parallel to x - x*."""
    step, lag = np.arange(0, N_STEPS, 3)[:, None], np.array([1, 2, 5])
    return step + lag >= N_STEPS - 1


def first_step(model: Model) -> Any:
    return np.arange(N_STEPS) == 0


def last_step(model: Model) -> Any:
    return np.arange(N_STEPS) == N_STEPS - 1


def anywhere(_model: Model) -> Any:
    return True


def with_reference_losses(run: trajstore.Run) -> xr.Dataset:
    losses = xr.zeros_like(run.steps.loss.compute()) + 0.1
    return analyzers.alpha_beta(run, reference_losses=losses)


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """An entry of the table.

    Attributes
    ----------
    of : callable
        Computes the result of a `Model`.
    walk, noise : callable
        Checks the result on a random walk, or on a run with label noise.
    nan : mapping
        Functions that return where a variable may be NaN, by name of the variable; the
        name "" stands for all other variables.
    needs_basis : bool
        Whether the analysis refuses a run that was recorded without a basis.
    """

    of: Callable[[Model], Result]
    walk: Check = checks.nothing_known
    noise: Check = checks.nothing_known
    nan: Mapping[str, Callable[[Model], Any]] = field(default_factory=dict)
    needs_basis: bool = False

    def check(self, control: str) -> Check:
        return self.walk if control == "random-walk" else self.noise


TABLE = {
    "path_geometry": Analysis(of=lambda m: m.geometry, walk=checks.walk_geometry),
    "store_geometry": Analysis(
        of=lambda m: analyzers.store_geometry(m.run), walk=checks.walk_geometry
    ),
    "average_of_epochs": Analysis(of=lambda m: to_average(m.run)),
    "epoch_means": Analysis(
        of=lambda m: analyzers.epoch_means(m.geometry), walk=checks.walk_means
    ),
    "random_walk_gamma": Analysis(
        of=lambda m: analyzers.random_walk_gamma(m.run), walk=checks.walk_null
    ),
    "excess_gamma": Analysis(
        of=lambda m: analyzers.excess_gamma(m.geometry, m.run),
        walk=checks.walk_excess,
        noise=checks.noise_excess,
    ),
    "lagged_gradients": Analysis(
        of=lambda m: analyzers.lagged_gradients(m.run, lags=[1, 2, 5], every=3),
        walk=checks.walk_lags,
        noise=checks.noise_lags,
        nan={"": beyond_end},
    ),
    "distance_travelled": Analysis(
        of=lambda m: analyzers.distance_travelled(m.run), walk=checks.walk_travelled
    ),
    "step_contraction": Analysis(
        of=lambda m: analyzers.step_contraction(m.geometry, lr=LR),
        walk=checks.walk_contraction,
    ),
    "locally_optimal_lr": Analysis(
        of=lambda m: analyzers.locally_optimal_lr(m.geometry),
        walk=checks.walk_lolr,
        nan={"": no_way_nearer},
    ),
    "guaranteed_decrease": Analysis(
        of=lambda m: analyzers.guaranteed_decrease(m.geometry),
        walk=checks.walk_decrease,
        nan={"": no_way_nearer},
    ),
    "linear_rate": Analysis(
        of=lambda m: analyzers.linear_rate(m.geometry),
        walk=checks.walk_rate,
        nan={"rate": guarantees_nothing, "lr": guarantees_nothing}
        | {"rate_stderr": guarantees_nothing, "lr_stderr": guarantees_nothing},
    ),
    "path_pca": Analysis(of=lambda m: analyzers.path_pca(m.run), walk=checks.walk_pca),
    "compare": Analysis(
        of=lambda m: analyzers.compare([m.run, m.run]),
        walk=checks.walk_compared,
    ),
    "path_distances": Analysis(
        of=lambda m: analyzers.path_distances(m.run, steps=range(0, 101, 7)),
        walk=checks.walk_distances,
    ),
    "zigzag": Analysis(
        of=lambda m: analyzers.zigzag(m.run),
        walk=checks.walk_zigzag,
        noise=checks.noise_zigzag,
        nan={"": first_step},
    ),
    "zigzag_segments": Analysis(
        of=lambda m: analyzers.zigzag_segments(m.run),
        walk=checks.neither,
        noise=checks.neither,
        nan={"cosine": first_step},
    ),
    "zigzag_layers": Analysis(
        of=lambda m: analyzers.zigzag_layers(m.run),
        walk=checks.neither_in_any_layer,
        noise=checks.neither_in_any_layer,
    ),
    "zigzag_shares": Analysis(of=lambda m: analyzers.zigzag_shares(m.run)),
    "lag_curve": Analysis(
        of=lambda m: analyzers.lag_curve(m.run), walk=checks.walk_lag_curve
    ),
    "smoothness": Analysis(
        of=lambda m: analyzers.smoothness(m.run),
        walk=checks.walk_smoothness,
        nan={"": first_step},
    ),
    "aiming": Analysis(
        of=lambda m: analyzers.aiming(m.run),
        walk=checks.walk_aiming,
        # The cosine is estimated and may exceed 1.
        nan={"angle_stderr": last_step},
    ),
    "aiming, full gradients": Analysis(
        of=lambda m: analyzers.aiming(m.run, measurement="full_batch"),
        walk=checks.walk_aiming_full,
    ),
    "alpha_beta": Analysis(
        of=lambda m: with_reference_losses(m.run), walk=checks.walk_alpha_beta
    ),
    "polyak_lojasiewicz": Analysis(
        of=lambda m: analyzers.polyak_lojasiewicz(m.run, reference_loss=0.0),
        walk=checks.walk_pl,
    ),
    "convexity": Analysis(of=lambda m: analyzers.convexity(m.run, reference_loss=0.1)),
    "update_products": Analysis(
        of=lambda m: analyzers.update_products(m.run),
        walk=checks.walk_products,
        nan={"after": last_step},
    ),
    "edge_of_stability": Analysis(
        of=lambda m: analyzers.edge_of_stability(m.run),
        walk=checks.far_below_the_edge,
        noise=checks.far_below_the_edge,
        # The threshold is never reached.
        nan=dict.fromkeys(
            ("reached", "ratio_median", "ratio_min", "ratio_max", "share_near"),
            anywhere,
        ),
    ),
    "scale_invariance": Analysis(
        of=lambda m: analyzers.scale_invariance(m.run),
        walk=checks.nothing_invariant,
        noise=checks.nothing_invariant,
        needs_basis=True,
    ),
}

TESTED_ELSEWHERE = {
    *("adjacent_convexity", "compare_over_seeds", "linear_modes", "log"),
    "range_means",
}
"""Analyses that need other runs: full-batch runs, runs of deep linear networks, or several seeds.
`log` sends results of analyses."""


def computed(name: str, model: Model) -> Any:
    if TABLE[name].needs_basis and not model.run.spec.basis:
        with pytest.raises(ValueError, match=r"basis=0; record with basis=1 or more"):
            TABLE[name].of(model)
        pytest.skip("the analysis needs a basis")
    return TABLE[name].of(model).compute()


@pytest.mark.parametrize("name", TABLE)
def test_values_are_finite_except_where_documented(name: str, model: Model):
    result = computed(name, model)
    parts = result.data_vars if isinstance(result, xr.Dataset) else {name: result}
    may_be = TABLE[name].nan
    for part, values in parts.items():
        where = may_be.get(str(part), may_be.get("", lambda _: False))(model)
        is_unexpected = ~np.isfinite(values) & ~np.asarray(where)
        assert not is_unexpected.any(), part


@pytest.mark.parametrize("name", TABLE)
def test_null_models_have_the_expected_values(name: str, model: Model):
    control = model.run.attrs["training"]["control"]
    TABLE[name].check(control)(computed(name, model), model)


def test_every_analysis_of_runs_has_an_entry():
    of_runs = {
        name
        for name in analyzers.__all__
        if {"run", "runs", "geometry"}
        & set(inspect.signature(getattr(analyzers, name)).parameters)
    }
    assert of_runs - TESTED_ELSEWHERE <= set(TABLE)
