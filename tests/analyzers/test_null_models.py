"""Test every analysis on null models: runs in which there is nothing to find.

`TABLE` has an entry for every public analysis of runs. The entry states how to call the
analysis, where its documentation allows NaN, and which values are expected for a recorded
random walk and for a run with noise as labels. The last test fails until a new analysis has
an entry.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr

import analyzers
import trajstore

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from tests.train.small_workloads import truncate
from train.models.mlp import mlp
from train.protocols.record import record
from train.settings import Training
from train.workloads.catalogue import WORKLOADS

LR, STEPS_PER_EPOCH, EPOCHS = 0.05, 20, 5
N_STEPS = STEPS_PER_EPOCH * EPOCHS


class Model(NamedTuple):
    """A recorded null model."""

    run: trajstore.Run
    geometry: xr.Dataset

    @property
    def left(self) -> Any:
        """Return the number of remaining steps before every step, shape (step,)."""
        return self.run.n_steps - np.arange(self.run.n_steps)

    @property
    def spread(self) -> float:
        """Return the standard deviation of the cosine of two random directions."""
        return float(self.run.layout.n_params**-0.5)


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


def z_is_normal(z: Any) -> None:
    """Check that errors match their standard errors, with no z-score above 5."""
    z = np.asarray(z).ravel()
    assert len(z) > 20
    assert abs(z).max() < 5
    assert 0.6 < np.sqrt((z**2).mean()) < 1.4


def averages_to_zero(values: Any) -> None:
    """Check that the mean is within five of its standard errors of zero."""
    values = np.asarray(values)
    values = values[np.isfinite(values)]
    assert len(values) > 20
    assert abs(values.mean()) < 5 * values.std() / len(values) ** 0.5


def near(value: Any, expected: Any, deviation: Any) -> None:
    """Check that values are within five deviations of their expectation."""
    assert (abs(np.asarray(value) - expected) < 5 * np.asarray(deviation)).all()


def nothing_known(result: Any, model: Model) -> None:
    """Accept any value, since none is known beforehand."""


def walk_geometry(geometry: xr.Dataset, model: Model) -> None:
    """Equation (8): gamma is 1 / sqrt(T - k), RSI is gamma^2 / lr, and EB is gamma / lr."""
    left, spread = model.left, model.spread
    deviation = np.hypot(geometry.gamma_stderr, spread)
    z_is_normal((geometry.gamma - left**-0.5) / deviation)
    # The whole walk also deviates from its expected length.
    near(
        geometry.distance,
        LR * left**0.5,
        geometry.distance_stderr + LR * left**0.5 * spread,
    )
    near(geometry.eb, left**-0.5 / LR, geometry.eb_stderr + left**-0.5 / LR * spread)
    rsi_deviation = geometry.rsi_stderr + 3 * left**-0.5 / LR * spread
    near(geometry.rsi, 1 / left / LR, rsi_deviation)
    near(geometry.lolr, LR, geometry.lolr_stderr + LR * left**0.5 * spread)


def walk_means(means: xr.Dataset, model: Model) -> None:
    expected = (model.left**-0.5).reshape(EPOCHS, -1).mean(1)
    near(means.gamma, expected, np.hypot(means.gamma_stderr, model.spread))


def walk_null(gamma: xr.DataArray, model: Model) -> None:
    np.testing.assert_allclose(gamma, model.left**-0.5, rtol=1e-4)


def walk_excess(excess: xr.Dataset, model: Model) -> None:
    z_is_normal(excess.excess / np.hypot(excess.excess_stderr, model.spread))


def noise_excess(excess: xr.Dataset, model: Model) -> None:
    """Gradients of label noise have the gamma of a random walk on average."""
    averages_to_zero(excess.excess[STEPS_PER_EPOCH:-STEPS_PER_EPOCH])


def walk_lags(lagged: xr.Dataset, model: Model) -> None:
    for name in ("cosine", "orthogonal_cosine"):
        stderr = np.hypot(lagged[f"{name}_stderr"], model.spread)
        z_is_normal((lagged[name] / stderr).values[np.isfinite(lagged[name].values)])
    expected = LR * np.sqrt(lagged.lag)
    is_known = np.isfinite(lagged.distance)
    deviation = lagged.distance_stderr + expected * model.spread
    near((lagged.distance - expected).where(is_known, 0), 0, deviation.fillna(1))


def noise_lags(lagged: xr.Dataset, model: Model) -> None:
    for lag in lagged.lag:
        averages_to_zero(lagged.cosine.sel(lag=lag, step=slice(STEPS_PER_EPOCH, None)))


def walk_travelled(travelled: xr.Dataset, model: Model) -> None:
    steps = np.arange(N_STEPS)
    np.testing.assert_allclose(travelled.path_length, LR * steps, rtol=1e-4, atol=1e-9)
    deviation = travelled.from_start_stderr + LR * steps**0.5 * model.spread
    near(travelled.from_start, LR * steps**0.5, deviation + 1e-6)


def walk_pca(path: xr.Dataset, model: Model) -> None:
    """Iterates of a walk have products lr^2 min(j, k) with each other."""
    steps = path.step.values
    products = LR**2 * np.minimum(steps[:, None], steps)
    centre = np.eye(len(steps)) - 1 / len(steps)
    values = np.linalg.eigvalsh(centre @ products @ centre)[::-1][:2]
    shares = values / np.trace(centre @ products @ centre)
    near(path.explained_variance_ratio, shares, model.spread)


def walk_compared(compared: xr.Dataset, model: Model) -> None:
    for i in range(2):
        walk_means(compared.isel(run=i), model)
    assert (compared.gamma_difference == 0).all()


def walk_distances(apart: xr.Dataset, model: Model) -> None:
    """Iterates j and k of a walk are lr sqrt(|j - k|) apart."""
    lag = np.abs(apart.step.values[:, None] - apart.other_step.values)
    expected = LR * np.sqrt(lag)
    deviation = apart.distance_stderr + 1.5 * expected * model.spread
    near(apart.distance, expected, deviation + 1e-9)


def walk_zigzag(cosine: xr.Dataset, model: Model) -> None:
    near(cosine.cosine[1:], 0, model.spread)
    averages_to_zero(cosine.cosine)


def noise_zigzag(cosine: xr.Dataset, model: Model) -> None:
    averages_to_zero(cosine.cosine[STEPS_PER_EPOCH:])


def neither(segments: xr.Dataset, model: Model) -> None:
    """No step belongs to a zigzag or to a smooth segment."""
    assert segments.sizes["segment"] == 1
    assert not segments.label.any()


def neither_in_any_layer(layers: xr.Dataset, model: Model) -> None:
    assert (layers.step_share.sel(kind="neither") == 1).all()


def walk_lag_curve(curve: xr.Dataset, model: Model) -> None:
    # All pairs share one set of probes, so errors of different lags are correlated.
    near(curve.cosine, 0, np.hypot(curve.cosine_stderr, model.spread))


def walk_smoothness(smooth: xr.Dataset, model: Model) -> None:
    """Gradients are orthogonal with norm 1, and steps have the length lr."""
    near(smooth.smoothness[1:], 2**0.5 / LR, 2**-0.5 * model.spread / LR)
    near(smooth.curvature[1:], 1 / LR, model.spread / LR)


def walk_aiming(aiming: xr.Dataset, model: Model) -> None:
    deviation = np.hypot(aiming.cosine_stderr, model.spread)
    z_is_normal((aiming.cosine - model.left**-0.5) / deviation)
    np.testing.assert_allclose(
        np.cos(np.deg2rad(aiming.angle)), np.clip(aiming.cosine, -1, 1), atol=1e-9
    )


def walk_aiming_full(aiming: xr.Dataset, model: Model) -> None:
    """The gradient of all data is unrelated to the later steps of the walk."""
    near(aiming.cosine, 0, np.hypot(aiming.cosine_stderr, model.spread))


def walk_alpha_beta(triples: xr.Dataset, model: Model) -> None:
    """<g_k, x_k - x*> is lr: only step k of all remaining steps contributes."""
    deviation = triples.product_stderr + LR * model.left**0.5 * model.spread
    near(triples["product"], LR, deviation)


def walk_pl(pl: xr.Dataset, model: Model) -> None:
    """The gradient has norm 1 for every loss."""
    grad_sq = pl.mu.sel(delta=2.0) * 2 * pl.loss
    np.testing.assert_allclose(grad_sq, 1, rtol=1e-3)


def walk_products(products: xr.Dataset, model: Model) -> None:
    """Products are -lr with the gradient before the step, and about 0 with the next."""
    np.testing.assert_allclose(products.before, -LR, rtol=1e-4)
    near(products.after[:-1], 0, LR * model.spread)


def far_below_the_edge(edge: xr.Dataset, model: Model) -> None:
    assert (edge.ratio < 0.1).all()
    assert np.isnan(edge.reached)


def nothing_invariant(layers: xr.Dataset, model: Model) -> None:
    assert not layers.is_invariant.any()


def walk_contraction(bound: xr.Dataset, model: Model) -> None:
    """Each step removes its own part of the squared distance to the end."""
    deviation = bound.ratio_stderr + 2 * model.left**-0.5 * model.spread
    near(bound.ratio, 1 - 1 / model.left, deviation + 1e-6)


def walk_decrease(decrease: xr.Dataset, model: Model) -> None:
    """The learning rate of the walk is locally optimal."""
    deviation = decrease.ratio_stderr + 2 * model.left**-0.5 * model.spread
    # The mean of a square exceeds the square of the mean by the variance.
    bias = model.geometry.gamma_stderr**2 + model.spread**2
    near(decrease.ratio, 1 - 1 / model.left, deviation + bias)


def walk_lolr(lolr: xr.Dataset, model: Model) -> None:
    near(lolr.lolr, LR, lolr.lolr_stderr + LR * model.left**0.5 * model.spread)


def walk_rate(rate: xr.Dataset, model: Model) -> None:
    """The last step has the largest EB, and the smallest RSI is at most that of step 0."""
    near(rate["L"], 1 / LR, rate["L_stderr"] + model.spread / LR)
    assert float(rate["mu"]) < 1 / (LR * N_STEPS)


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
    walk: Check = nothing_known
    noise: Check = nothing_known
    nan: Mapping[str, Callable[[Model], Any]] = field(default_factory=dict)
    needs_basis: bool = False

    def check(self, control: str) -> Check:
        return self.walk if control == "random-walk" else self.noise


TABLE = {
    "path_geometry": Analysis(of=lambda m: m.geometry, walk=walk_geometry),
    "store_geometry": Analysis(
        of=lambda m: analyzers.store_geometry(m.run), walk=walk_geometry
    ),
    "average_of_epochs": Analysis(of=lambda m: to_average(m.run)),
    "epoch_means": Analysis(
        of=lambda m: analyzers.epoch_means(m.geometry), walk=walk_means
    ),
    "random_walk_gamma": Analysis(
        of=lambda m: analyzers.random_walk_gamma(m.run), walk=walk_null
    ),
    "excess_gamma": Analysis(
        of=lambda m: analyzers.excess_gamma(m.geometry, m.run),
        walk=walk_excess,
        noise=noise_excess,
    ),
    "lagged_gradients": Analysis(
        of=lambda m: analyzers.lagged_gradients(m.run, lags=[1, 2, 5], every=3),
        walk=walk_lags,
        noise=noise_lags,
        nan={"": beyond_end},
    ),
    "distance_travelled": Analysis(
        of=lambda m: analyzers.distance_travelled(m.run), walk=walk_travelled
    ),
    "step_contraction": Analysis(
        of=lambda m: analyzers.step_contraction(m.geometry, lr=LR),
        walk=walk_contraction,
    ),
    "locally_optimal_lr": Analysis(
        of=lambda m: analyzers.locally_optimal_lr(m.geometry),
        walk=walk_lolr,
        nan={"": no_way_nearer},
    ),
    "guaranteed_decrease": Analysis(
        of=lambda m: analyzers.guaranteed_decrease(m.geometry),
        walk=walk_decrease,
        nan={"": no_way_nearer},
    ),
    "linear_rate": Analysis(
        of=lambda m: analyzers.linear_rate(m.geometry),
        walk=walk_rate,
        nan={"rate": guarantees_nothing, "lr": guarantees_nothing}
        | {"rate_stderr": guarantees_nothing, "lr_stderr": guarantees_nothing},
    ),
    "path_pca": Analysis(of=lambda m: analyzers.path_pca(m.run), walk=walk_pca),
    "compare": Analysis(
        of=lambda m: analyzers.compare([m.run, m.run]),
        walk=walk_compared,
    ),
    "path_distances": Analysis(
        of=lambda m: analyzers.path_distances(m.run, steps=range(0, 101, 7)),
        walk=walk_distances,
    ),
    "zigzag": Analysis(
        of=lambda m: analyzers.zigzag(m.run),
        walk=walk_zigzag,
        noise=noise_zigzag,
        nan={"": first_step},
    ),
    "zigzag_segments": Analysis(
        of=lambda m: analyzers.zigzag_segments(m.run),
        walk=neither,
        noise=neither,
        nan={"cosine": first_step},
    ),
    "zigzag_layers": Analysis(
        of=lambda m: analyzers.zigzag_layers(m.run),
        walk=neither_in_any_layer,
        noise=neither_in_any_layer,
    ),
    "zigzag_shares": Analysis(of=lambda m: analyzers.zigzag_shares(m.run)),
    "lag_curve": Analysis(of=lambda m: analyzers.lag_curve(m.run), walk=walk_lag_curve),
    "smoothness": Analysis(
        of=lambda m: analyzers.smoothness(m.run),
        walk=walk_smoothness,
        nan={"": first_step},
    ),
    "aiming": Analysis(
        of=lambda m: analyzers.aiming(m.run),
        walk=walk_aiming,
        # The cosine is estimated and may exceed 1.
        nan={"angle_stderr": last_step},
    ),
    "aiming, full gradients": Analysis(
        of=lambda m: analyzers.aiming(m.run, measurement="full_batch"),
        walk=walk_aiming_full,
    ),
    "alpha_beta": Analysis(
        of=lambda m: with_reference_losses(m.run), walk=walk_alpha_beta
    ),
    "polyak_lojasiewicz": Analysis(
        of=lambda m: analyzers.polyak_lojasiewicz(m.run, reference_loss=0.0),
        walk=walk_pl,
    ),
    "convexity": Analysis(of=lambda m: analyzers.convexity(m.run, reference_loss=0.1)),
    "update_products": Analysis(
        of=lambda m: analyzers.update_products(m.run),
        walk=walk_products,
        nan={"after": last_step},
    ),
    "edge_of_stability": Analysis(
        of=lambda m: analyzers.edge_of_stability(m.run),
        walk=far_below_the_edge,
        noise=far_below_the_edge,
        # The threshold is never reached.
        nan=dict.fromkeys(
            ("reached", "ratio_median", "ratio_min", "ratio_max", "share_near"),
            anywhere,
        ),
    ),
    "scale_invariance": Analysis(
        of=lambda m: analyzers.scale_invariance(m.run),
        walk=nothing_invariant,
        noise=nothing_invariant,
        needs_basis=True,
    ),
}

TESTED_ELSEWHERE = {"adjacent_convexity", "linear_modes", "log"}
"""Analyses that need other runs: full-batch runs, or runs of deep linear networks. `log` sends
results of analyses."""


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
