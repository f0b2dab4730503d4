"""Test ``analyzers.geometry.theory`` on a quadratic, where gradients and x* are known."""

from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

import analyzers

EIGENVALUES = np.array([0.5, 1.0, 3.0, 8.0])
LR = 0.11


def descent(n_steps: int = 30) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Iterates of gradient descent on sum(eigenvalue * x**2) / 2; x* is 0."""
    x = np.array([3.0, -2.0, 1.0, 0.7])
    return np.array([x * (1 - LR * EIGENVALUES) ** k for k in range(n_steps)])


def measured(x: np.ndarray[Any, Any], g: np.ndarray[Any, Any]) -> xr.Dataset:
    h, d_sq, g_sq = (g * x).sum(1), (x**2).sum(1), (g**2).sum(1)
    values = {
        "rsi": h / d_sq,
        "eb": np.sqrt(g_sq / d_sq),
        "gamma": h / np.sqrt(g_sq * d_sq),
    }
    errors = {f"{name}_stderr": np.zeros(len(x)) for name in values}
    return xr.Dataset({k: ("step", v) for k, v in (values | errors).items()})


def quadratic() -> xr.Dataset:
    x = descent()
    return measured(x, EIGENVALUES * x)


def test_contraction_is_the_change_of_the_distance():
    x = descent(31)
    expected = (x[1:] ** 2).sum(1) / (x[:-1] ** 2).sum(1)
    result = analyzers.step_contraction(quadratic(), lr=LR)
    np.testing.assert_allclose(result["ratio"], expected, rtol=1e-12)
    by_step = xr.DataArray(np.full(30, LR), dims="step")
    xr.testing.assert_allclose(
        result, analyzers.step_contraction(quadratic(), lr=by_step), rtol=1e-12
    )


def test_no_learning_rate_comes_nearer_than_the_locally_optimal_one():
    geometry = quadratic()
    best = analyzers.locally_optimal_lr(geometry)["lolr"]
    at_best = analyzers.step_contraction(geometry, lr=best)["ratio"]
    for factor in (0.9, 1.1):
        worse = analyzers.step_contraction(geometry, lr=factor * best)["ratio"]
        assert (worse > at_best).all()
    left = analyzers.guaranteed_decrease(geometry)["ratio"]
    np.testing.assert_allclose(left, at_best, rtol=1e-12)


def test_guaranteed_rate_holds_for_every_step_of_its_learning_rate():
    x = descent()
    result = analyzers.linear_rate(quadratic())
    after = x * (1 - float(result.lr) * EIGENVALUES)
    ratio = (after**2).sum(1) / (x**2).sum(1)
    assert (ratio <= float(result.rate) + 1e-12).all()
    # The direction with the largest eigenvalue dies out first.
    np.testing.assert_allclose(result.L, quadratic().eb[0], rtol=1e-12)
    np.testing.assert_allclose(result.mu, quadratic().rsi[-1], rtol=1e-12)


def test_rate_of_a_sphere_is_known():
    x = np.random.default_rng(0).normal(size=(5, 4))
    result = analyzers.linear_rate(measured(x, 2.0 * x))
    np.testing.assert_allclose(
        [result.mu, result.L, result.rate, result.lr], [2, 2, 0, 0.5], atol=1e-12
    )


def test_quantities_that_need_a_positive_rsi_are_nan_without_one():
    x = descent(2)
    geometry = measured(x, np.stack([x[0], -x[1]]))
    lolr = analyzers.locally_optimal_lr(geometry)["lolr"]
    assert np.isnan(lolr.values).tolist() == [False, True]
    assert np.isnan(analyzers.guaranteed_decrease(geometry)["ratio"][1])
    rate = analyzers.linear_rate(geometry)
    assert np.isnan([rate.rate, rate.lr, rate.rate_stderr, rate.lr_stderr]).all()
    np.testing.assert_allclose(
        [rate.mu, rate.L], [geometry.rsi.min(), geometry.eb.max()], rtol=1e-12
    )
    assert rate.mu < 0
    # The identity agrees: the step leads away from x*.
    assert float(analyzers.step_contraction(geometry, lr=0.1)["ratio"][1]) > 1


def noisy(n: int) -> tuple[xr.Dataset, xr.Dataset]:
    """Return two steps, and n estimates with errors of <g, x - x*> and of the distance."""
    rng = np.random.default_rng(0)
    h, d, g = np.array([0.4, 2.0]), np.array([2.0, 1.0]), np.array([0.9, 3.0])
    relative_h, relative_d = 0.01, 0.003

    def of(h: Any, d: Any) -> dict[str, Any]:
        return {"rsi": h / d**2, "eb": g / d, "gamma": h / (g * d)}

    truth = of(h, d)
    errors = {
        "rsi_stderr": truth["rsi"] * np.hypot(relative_h, 2 * relative_d),
        "eb_stderr": truth["eb"] * relative_d,
        "gamma_stderr": truth["gamma"] * np.hypot(relative_h, relative_d),
    }
    many = of(
        h * (1 + relative_h * rng.normal(size=(n, 2))),
        d * (1 + relative_d * rng.normal(size=(n, 2))),
    )
    exact = {k: ("step", v) for k, v in (truth | errors).items()}
    estimates = {
        k: (("draw", "step"), np.broadcast_to(v, (n, 2)))
        for k, v in (many | errors).items()
    }
    return xr.Dataset(exact), xr.Dataset(estimates)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda g: analyzers.step_contraction(g, lr=0.7), "ratio"),
        (lambda g: analyzers.step_contraction(g, lr=6.0), "ratio"),
        (analyzers.locally_optimal_lr, "lolr"),
        (analyzers.guaranteed_decrease, "ratio"),
        *((analyzers.linear_rate, name) for name in ("mu", "L", "rate", "lr")),
    ],
    ids=["short step", "long step", "lolr", "decrease", "mu", "L", "rate", "its lr"],
)
def test_standard_errors_are_the_spread_of_estimates(function: Any, name: str):
    truth, estimates = noisy(20_000)
    spread = function(estimates)[name].std("draw")
    # The standard deviation of 20,000 numbers has a relative error of 1 / sqrt(40,000).
    np.testing.assert_allclose(spread, function(truth)[f"{name}_stderr"], rtol=0.025)


@pytest.mark.parametrize(
    "function",
    [
        lambda g: analyzers.step_contraction(g, lr=LR),
        analyzers.locally_optimal_lr,
        analyzers.guaranteed_decrease,
        analyzers.linear_rate,
    ],
)
def test_results_are_lazy_and_do_not_depend_on_chunks(function: Any):
    eager = function(quadratic())
    with dask.config.set(scheduler=lambda *_a, **_k: pytest.fail("computed")):
        lazy = function(quadratic().chunk(step=7))
    xr.testing.assert_allclose(lazy.compute(), eager, rtol=1e-14)


def test_theory_takes_what_path_geometry_returns(example_run: Any):
    import trajstore

    geometry = analyzers.path_geometry(trajstore.open_run(example_run)).compute()
    lolr = analyzers.locally_optimal_lr(geometry)
    where = geometry.rsi > 0
    assert int(where.sum()) > 0
    xr.testing.assert_allclose(lolr.lolr, geometry.lolr.where(where), rtol=1e-9)
    np.testing.assert_allclose(
        lolr.lolr_stderr, geometry.lolr_stderr.where(where), rtol=1e-6
    )
    by_layer = analyzers.path_geometry(trajstore.open_run(example_run), layers=True)
    assert analyzers.linear_rate(by_layer).mu.dims == ("layer",)
