"""What results of null models should be, for `test_null_models`."""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr

import trajstore

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
