"""Test ``analyzers.conditions.alpha_beta`` against the true gradients of training."""

from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

import analyzers
from tests.analyzers.conditions.known_run import (
    EPOCHS,
    N_STEPS,
    PER_EPOCH,
    KnownRun,
    train,
)
from trajstore import Run, open_run

torch = pytest.importorskip("torch")

from torch import nn

from trajstore import Recorder

# Terms of the condition


def test_an_exact_run_has_the_true_products_and_losses(known: KnownRun):
    result = known.compared()
    np.testing.assert_allclose(result["product"], known.product, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(result["product_stderr"], 0)
    np.testing.assert_allclose(result["loss"], known.loss, rtol=1e-6)
    np.testing.assert_array_equal(result["reference_loss"], known.reference_loss)
    assert result.attrs["reference_losses"] == "given by the caller"
    np.testing.assert_array_equal(
        result.sel(epoch=1)["step"], range(PER_EPOCH, 2 * PER_EPOCH)
    )


def test_products_are_lazy(known: KnownRun):
    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("computed")

    with dask.config.set(scheduler=fail):
        analyzers.alpha_beta(known.run, reference_losses=known.reference_loss)


def test_errors_of_products_do_not_depend_on_the_distance(tmp_path: Path):
    """Errors of products come from the signs; the distance comes from the probes.

    The probes only tell how far the ends of windows are from their anchors.
    """
    few, more = (
        train(tmp_path / f"{n}.zarr", exact=False, sketch_bits=512, probes=n)
        for n in (8, 1024)
    )
    a, b = few.compared(), more.compared()
    stderr = a["product_stderr"] + 1e-9
    assert (abs(a["product"] - b["product"]) <= 0.5 * stderr).all()
    assert (abs(stderr - b["product_stderr"]) <= 0.5 * stderr + 1e-8).all()
    z = (a["product"] - few.product) / a["product_stderr"].where(a["product"] != 0)
    assert 0 < float(abs(z[:-2]).max()) < 5


def test_the_product_with_a_gradient_of_zeros_is_zero(tmp_path: Path):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "flat.zarr", model, optimizer, sketch_bits=64) as recorder:
        for scale in (0, 1, 0):
            optimizer.zero_grad()
            loss = scale * model(torch.ones(1, 3)).square().sum()
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
    run = open_run(tmp_path / "flat.zarr")
    result = analyzers.alpha_beta(run, reference_losses=np.zeros(3)).compute()
    np.testing.assert_array_equal(result["product"][[0, 2]], 0)
    assert float(result["product"][1]) > 0


def test_measurements_can_be_compared(known: KnownRun):
    measured = known.run.measured("full_batch")
    full = np.full(EPOCHS, known.full["at_end"])
    result = analyzers.alpha_beta(measured, reference_losses=full).compute()
    np.testing.assert_allclose(result["product"], known.full["product"], rtol=1e-4)


def test_missing_losses_are_named(known: KnownRun, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"one number for each of the 80 steps .*\(3,\)"
    ):
        analyzers.alpha_beta(known.run, reference_losses=[1, 2, 3])
    with pytest.raises(
        ValueError,
        match=r"give an array .* \(for a run of traj-train, compute them with",
    ):
        analyzers.alpha_beta(known.run)
    with pytest.raises(ValueError, match=r"replay \S+run.zarr --reference 0\)"):
        analyzers.alpha_beta(known.run, reference=0)
    point = {name: np.zeros(s) for name, s in zip(*layout_of(known.run), strict=True)}
    with pytest.raises(
        ValueError, match=r"run.zarr; give an array as reference_losses"
    ):
        analyzers.alpha_beta(known.run, reference=point)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run.zarr", model, optimizer, sketch_bits=64) as recorder:
        model(torch.ones(1, 3)).sum().backward()
        recorder.measure("full_batch")
        optimizer.step()
    run = open_run(tmp_path / "run.zarr")
    with pytest.raises(
        ValueError, match=r"record them with recorder.log\(loss=loss\)\.$"
    ):
        analyzers.alpha_beta(run)
    with pytest.raises(
        ValueError, match=r"recorder.measure\('full_batch', loss=loss\)"
    ):
        analyzers.aiming(run, measurement="full_batch")


def layout_of(run: Run) -> Any:
    return run.layout.names, run.layout.shapes


def test_losses_below_the_optimal_loss_are_refused(known: KnownRun):
    lowest = int(known.loss.argmin())
    with pytest.raises(
        ValueError, match=rf"step {lowest} is .* below optimal_loss = 0.7, .* smaller"
    ):
        known.compared(optimal_loss=0.7)
    losses = known.reference_loss.copy()
    losses[4] = -0.25
    with pytest.raises(ValueError, match=r"step 4 at x\* is -0.25, below"):
        analyzers.alpha_beta(known.run, reference_losses=losses)


# Pairs


def every_margin(knowns: list[KnownRun], alpha: float, beta: float) -> Any:
    return np.concatenate([k.margins(alpha, beta) for k in knowns])


def grid() -> Any:
    alpha, beta = np.linspace(0.05, 4, 60), np.linspace(0, 3.5, 56)
    return alpha, beta


@pytest.mark.parametrize("min_gap", [0.1, 1.0])
def test_feasible_pairs_hold_at_every_step(
    known: KnownRun, other: KnownRun, min_gap: float
):
    """Compare the set with the condition at every point of a grid."""
    knowns = [known, other]
    pairs = analyzers.feasible_set([k.compared() for k in knowns], min_gap=min_gap)
    alpha, beta = grid()
    lower = analyzers.smallest_beta(pairs, alpha).values
    n_inside = 0
    for i, a in enumerate(alpha):
        for b in beta:
            expected = a >= b + min_gap and bool(
                (every_margin(knowns, a, b) >= 0).all()
            )
            assert (lower[i] <= b <= a - min_gap) == expected, (a, b)
            n_inside += expected
    assert 50 < n_inside < alpha.size * beta.size / 2 - 50
    assert int(pairs["n_steps"]) == 2 * N_STEPS
    assert int(pairs["n_missing"]) == 0


def test_no_pair_undercuts_the_smallest(known: KnownRun, other: KnownRun):
    pairs = analyzers.feasible_set([known.compared(), other.compared()])
    corners = np.stack([pairs["alpha"], pairs["beta"]], 1)
    smallest = corners[pairs["is_smallest"].values]
    # Along the Pareto front alpha increases and beta decreases; then beta increases.
    assert (np.diff(smallest[:, 0]) > 0).all()
    assert (np.diff(smallest[:, 1]) < 0).all()
    assert len(smallest) > 1
    rest = corners[len(smallest) :]
    assert (rest[:, 1] >= smallest[-1, 1]).all()
    best = float(pairs["best_alpha"] + pairs["best_beta"])
    alpha, beta = (axis.ravel() for axis in np.meshgrid(*grid()))
    for a, b in zip(alpha, beta, strict=True):
        if a >= b + 0.1 and (every_margin([known, other], a, b) >= 0).all():
            assert a + b >= best
    T = every_margin(
        [known, other], float(pairs["best_alpha"]), float(pairs["best_beta"])
    )
    assert T.min() == pytest.approx(0, abs=1e-4)


def test_every_bound_names_its_run_and_step(known: KnownRun, other: KnownRun):
    knowns = [known, other]
    pairs = analyzers.feasible_set([k.compared() for k in knowns])
    assert pairs.attrs["runs"] == [k.run.location for k in knowns]
    for i in range(pairs.sizes["vertex"]):
        step, run = int(pairs["step"][i]), int(pairs["run"][i])
        a, b = float(pairs["alpha"][i]), float(pairs["beta"][i])
        if step < 0:
            assert b == 0
            continue
        T = every_margin([knowns[run]], a, b)
        assert T[step] == pytest.approx(0, abs=1e-4 * max(1, a))
    step, run = int(pairs["limit_step"]), int(pairs["limit_run"])
    assert step >= 0
    a, b = float(pairs["alpha"][0]), float(pairs["beta"][0])
    assert a - b == pytest.approx(0.1)
    assert every_margin([knowns[run]], a, b)[step] == pytest.approx(0, abs=1e-4)


def test_margins_are_minima_over_steps_and_runs(known: KnownRun, other: KnownRun):
    alpha, beta = [0.5, 2.0, 7.0], [0.0, 1.5]
    found = analyzers.margin([known.compared(), other.compared()], alpha, beta)
    assert dict(found.sizes) == {"alpha": 3, "beta": 2}
    for i, a in enumerate(alpha):
        for j, b in enumerate(beta):
            T = every_margin([known, other], a, b)
            assert float(found["margin"][i, j]) == pytest.approx(T.min(), abs=1e-5)
            run, step = divmod(int(T.argmin()), N_STEPS)
            assert (int(found["run"][i, j]), int(found["step"][i, j])) == (run, step)


def test_the_optimal_loss_shifts_beta_only(known: KnownRun):
    shifted = known.compared(optimal_loss=-0.5)
    a, b = 2.0, 1.0
    T = known.product - a * (known.loss - known.reference_loss) + b * (known.loss + 0.5)
    found = analyzers.margin(shifted, a, b)["margin"]
    assert found.item() == pytest.approx(T.min(), abs=1e-5)


def test_standard_errors_move_the_boundary(sketched: KnownRun):
    compared = sketched.compared()
    alpha = np.linspace(0, 4, 50)
    stricter, plain, looser = (
        analyzers.smallest_beta(analyzers.feasible_set(compared, n_stderr=n), alpha)
        for n in (-1, 0, 1)
    )
    highest, middle, lowest = (b.fillna(np.inf) for b in (stricter, plain, looser))
    assert (lowest <= middle).all()
    assert (middle <= highest).all()
    assert float(lowest[-1]) < float(highest[-1])
    by_hand = compared.assign(
        product=compared["product"] - compared["product_stderr"],
        loss=compared["loss"] + compared["loss_rounding"],
    )
    xr.testing.assert_allclose(
        analyzers.feasible_set(by_hand), analyzers.feasible_set(compared, n_stderr=-1)
    )


def test_incomplete_steps_are_left_out_and_counted(known: KnownRun):
    compared = known.compared()
    worst = analyzers.margin(compared, 1.0, 0.0)["step"].item()
    for name, value in {
        "product": np.nan,
        "loss": np.inf,
        "reference_loss": np.nan,
    }.items():
        spoilt = compared.copy(deep=True)
        spoilt[name][worst] = value
        pairs = analyzers.feasible_set(spoilt)
        left = compared.drop_isel(step=worst)
        without = analyzers.feasible_set(left)
        assert (int(pairs["n_missing"]), int(pairs["n_steps"])) == (1, N_STEPS - 1)
        xr.testing.assert_equal(
            pairs.drop_vars("n_missing"), without.drop_vars("n_missing")
        )
        margins = analyzers.margin(spoilt, 1.0, 0.0)
        assert int(margins["n_missing"]) == 1
        assert margins["step"].item() != worst
    nothing = compared.assign(product=compared["product"] * np.nan)
    for function in (analyzers.feasible_set, lambda d: analyzers.margin(d, 1.0, 0.0)):
        with pytest.raises(ValueError, match="None of the 80 steps has a product"):
            function(nothing)


def test_an_empty_set_names_the_step_that_excludes_all_pairs(known: KnownRun):
    compared = known.compared()
    spoilt = compared.copy(deep=True)
    spoilt["reference_loss"][3] = 0
    spoilt["product"][3] = -1
    pairs = analyzers.feasible_set(spoilt)
    assert pairs.sizes["vertex"] == 0
    assert np.isnan(pairs["best_alpha"])
    assert np.isnan(pairs["best_beta"])
    assert f"step 3 of {known.run.location} has" in pairs.attrs["note"]
    assert pairs.attrs["note"].startswith("no pair is feasible")
    assert np.isnan(analyzers.smallest_beta(pairs, [1.0, 1000.0])).all()


def test_an_empty_set_says_where_only_the_gap_is_too_large(known: KnownRun):
    """With the losses at x* as f*, only alpha - beta matters, up to a_k / (l_k - f*)."""
    # The losses at x* belong to the recording that tests share.
    compared = known.compared().copy(deep=True)
    compared["reference_loss"][:] = 0.0
    compared["loss"][:] = 1.0
    compared["product"][:] = 0.06
    compared["product"][5] = 0.05
    pairs = analyzers.feasible_set(compared)
    assert pairs.sizes["vertex"] == 0
    note = pairs.attrs["note"]
    assert (
        "the steps allow alpha - beta of at most 0.05, and min_gap asks for 0.1" in note
    )
    without = analyzers.feasible_set(compared, min_gap=0)
    assert analyzers.largest_alpha(without) == pytest.approx(0.05)
    compared["product"][5] = -0.05
    assert "min_gap" not in analyzers.feasible_set(compared).attrs["note"]


def test_arguments_out_of_range_are_refused(known: KnownRun):
    compared = known.compared()
    with pytest.raises(ValueError, match="`min_gap` must be at least 0, got -1"):
        analyzers.feasible_set(compared, min_gap=-1)
    with pytest.raises(ValueError, match="at least one dataset of"):
        analyzers.feasible_set([])
    with pytest.raises(ValueError, match=r"must be one-dimensional, got .*\(1, 2\)"):
        analyzers.margin(compared, [[1, 2]], 0.5)


def hand_made(*steps: tuple[float, float, float]) -> xr.Dataset:
    """Return a result of `analyzers.alpha_beta` with given products, losses and losses at x*."""
    product, loss, reference_loss = np.array(steps).T
    variables = {
        "product": ("step", product),
        "product_stderr": ("step", 0.1 * abs(product)),
        "loss": ("step", loss),
        "reference_loss": ("step", reference_loss),
    }
    attrs = {"optimal_loss": 0.0, "run": "a.zarr", "reference": "final"}
    return xr.Dataset(variables, {"step": np.arange(len(steps))}, attrs)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        # At beta = 0, T = a - alpha (l - r): the smallest quotient bounds alpha.
        ([(2.0, 1.5, 0.5), (6.0, 2.5, 0.5)], 2.0),
        ([(2.0, 0.5, 0.5), (6.0, 0.4, 0.5)], np.inf),
        ([(-1.0, 1.5, 0.5)], np.nan),
        # T = -1 + alpha + beta holds from alpha = 1 on.
        ([(-1.0, 1.0, 2.0), (2.0, 2.0, 1.0)], 2.0),
    ],
    ids=["bounded", "unbounded", "never", "an interval"],
)
def test_the_largest_alpha_at_beta_0(
    steps: list[tuple[float, float, float]], expected: float
):
    pairs = analyzers.feasible_set(hand_made(*steps))
    np.testing.assert_allclose(analyzers.largest_alpha(pairs), expected)
    if np.isfinite(expected):
        at = analyzers.smallest_beta(pairs, [expected * 0.999, expected * 1.001])
        assert at[0] == 0
        assert at[1] > 0
        fewer = analyzers.feasible_set(hand_made(*steps), n_stderr=-1)
        assert analyzers.largest_alpha(fewer) < expected
