"""Test that modes of recorded networks follow the closed form."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import analyzers
import trajstore

torch = pytest.importorskip("torch")

from train.protocols.record import record
from train.workloads.catalogue import settings_of

RATES = (0.04, 0.02, 0.01)
UNTIL = 8.0
"""Time at which runs end, when the first two modes are learnt."""

Measured = Callable[..., xr.Dataset]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Return a cached function that trains, records and measures a workload."""
    directory, done = tmp_path_factory.mktemp("linear"), {}

    def measure(name: str, lr: float) -> xr.Dataset:
        if (name, lr) not in done:
            path = directory / f"{name}-{lr}.zarr"
            steps = round(UNTIL / lr)
            training = replace(settings_of(name), lr=lr, max_steps=steps)
            record(training, path, exact=True)
            done[name, lr] = analyzers.linear_modes(trajstore.open_run(path))
        return done[name, lr]

    return measure


@pytest.fixture(scope="module")
def recorded(
    measured: Measured, tmp_path_factory: pytest.TempPathFactory
) -> trajstore.Run:
    """Return a run of three layers."""
    return trajstore.open_run(measured("deep-linear-3", 0.04).attrs["run"])


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_small_steps_follow_the_closed_form_within_a_percent(
    measured: Measured, depth: int
):
    modes = measured(f"deep-linear-{depth}", 0.01)
    np.testing.assert_allclose(modes.strength, [1, 0.6, 0.35, 0.2], atol=1e-6)
    assert float(modes.time[-1]) == pytest.approx(UNTIL - 0.01)
    assert float(modes.modes[-1, 0]) > 0.98
    assert float(abs(modes.error).max()) < 0.01
    assert float(modes.between_modes.max()) < 1e-5


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_halving_the_step_size_halves_the_error(measured: Measured, depth: int):
    errors = [
        float(abs(measured(f"deep-linear-{depth}", lr).error).max()) for lr in RATES
    ]
    # Rounding of the float32 weights would cause errors of 1e-4.
    assert errors[-1] > 1e-3
    ratios = np.divide(errors[:-1], errors[1:])
    np.testing.assert_allclose(ratios, 2, rtol=0.1)


@pytest.mark.parametrize("depth", [2, 3])
def test_half_times_converge_to_the_flow(measured: Measured, depth: int):
    delays = [
        (modes.half_time - modes.half_time_closed_form)[:2].values
        for modes in (measured(f"deep-linear-{depth}", lr) for lr in RATES)
    ]
    assert (delays[-1] > 0).all()
    assert (delays[-1] < 0.05).all()
    np.testing.assert_allclose(np.divide(delays[0], delays[2]), 4, rtol=0.15)


def test_modes_are_learnt_one_after_another(measured: Measured):
    """Four singular values are equal at first, and the largest mode grows before others."""
    modes = measured("deep-linear-4", 0.01)
    assert float(modes.effective_rank[0]) == pytest.approx(4, rel=1e-5)
    half_time = float(modes.half_time[0])
    halfway = modes.isel(step=int(np.searchsorted(modes.time.values, half_time)))
    assert float(halfway.effective_rank) < 2.1
    assert (halfway.modes[1:] < 0.05).all()
    assert np.diff(modes.half_time.values[:2]) > 2


def test_descent_hardly_changes_the_matrices_that_flow_conserves(measured: Measured):
    """The drift from random weights starts at zero and is proportional to the step size."""
    drifts = [float(measured("deep-linear-2-random", lr).drift[-1]) for lr in RATES]
    np.testing.assert_allclose(np.divide(drifts[:-1], drifts[1:]), 2, rtol=0.1)
    modes = measured("deep-linear-2-random", 0.01)
    assert modes.drift[0] == 0
    assert float(modes.drift.max()) < 0.02 * float(modes.imbalance.min())
    aligned = measured("deep-linear-3", 0.01)
    assert float(aligned.imbalance.max()) < 1e-5


def iterates(run: trajstore.Run) -> list[dict[str, Any]]:
    """Return every iterate of an exact run, read row by row."""
    whole = slice(0, run.layout.size)
    window, displacement = (
        run.stored.array("window")[:],
        run.stored.array("displacement"),
    )
    return [
        run.layout.unflatten(
            run.stored.anchors.decode(int(window[k]), whole).astype(float)
            + displacement[k]
        )
        for k in range(run.n_steps)
    ]


def test_everything_is_computed_from_the_recorded_weights(measured: Measured):
    """Compare a run from random weights with loops over steps, layers and modes."""
    expected = measured("deep-linear-3-random", 0.04)
    run = trajstore.open_run(expected.attrs["run"])
    target = np.array(run.attrs["input_output_correlation"])
    left, _, right = np.linalg.svd(target)
    first = None
    for k, x in enumerate(iterates(run)):
        one, two, three = (x[f"{i}.weight"] for i in range(3))
        product = three @ two @ one
        in_modes = left.T @ product @ right.T
        row = expected.isel(step=k)
        np.testing.assert_allclose(row.modes, np.diag(in_modes)[:4], atol=1e-9)
        between = abs(in_modes[:, :4] - np.diag(np.diag(in_modes)[:4])).max()
        np.testing.assert_allclose(row.between_modes, between, rtol=1e-7, atol=1e-9)
        share = np.linalg.svd(product, compute_uv=False)
        share /= share.sum()
        rank = np.exp(-(share * np.log(share)).sum())
        np.testing.assert_allclose(row.effective_rank, rank, rtol=1e-7)
        conserved = [two.T @ two - one @ one.T, three.T @ three - two @ two.T]
        first = first or conserved
        np.testing.assert_allclose(
            row.imbalance, max(abs(c).max() for c in conserved), rtol=1e-7
        )
        drift = max(abs(c - f).max() for c, f in zip(conserved, first, strict=True))
        np.testing.assert_allclose(row.drift, drift, rtol=1e-5, atol=1e-12)


def test_closed_form_may_start_later(recorded: trajstore.Run):
    modes = analyzers.linear_modes(recorded, start=50)
    assert np.isnan(modes.closed_form[:50]).all()
    np.testing.assert_allclose(modes.error[50], 0, atol=1e-12)
    whole = analyzers.linear_modes(recorded)
    np.testing.assert_array_equal(modes.modes, whole.modes)
    # A closed form that starts later is less far ahead of the run.
    assert abs(modes.error).max() < abs(whole.error).max()


def test_other_conventions_have_other_times(recorded: trajstore.Run):
    """Analyse a run trained on the half sum as if it had been trained on another loss."""
    time = analyzers.linear_modes(recorded).time
    factors: dict[Any, float] = {"sum": 2, "mean": 2 / 4}
    for loss, factor in factors.items():
        other = analyzers.linear_modes(recorded, loss=loss)
        np.testing.assert_allclose(other.time, factor * time)
        assert other.attrs["loss_convention"] == loss
        assert float(abs(other.error).max()) > 0.1


def test_layers_and_modes_may_be_chosen(recorded: trajstore.Run):
    x = iterates(recorded)[7]
    modes = analyzers.linear_modes(
        recorded, layers=["1.weight"], correlation=np.diag(np.arange(1.0, 13.0))
    )
    assert modes.attrs["depth"] == 1
    np.testing.assert_allclose(modes.strength, np.arange(12, 0, -1))
    np.testing.assert_allclose(modes.modes[7], np.diag(x["1.weight"])[::-1], atol=1e-9)
    assert (modes.imbalance == 0).all()


def test_modes_of_no_strength_have_no_half_time(recorded: trajstore.Run):
    rounded = np.zeros((4, 16))
    rounded[:2, :2] = 1
    rounded[1, 1] += 1e-12
    modes = analyzers.linear_modes(recorded, correlation=rounded)
    np.testing.assert_allclose(modes.strength, [2, 0, 0, 0])
    assert np.isnan(modes.half_time[1:]).all()
    assert np.isnan(modes.half_time_closed_form[1:]).all()


def test_rows_are_steps(recorded: trajstore.Run):
    modes = analyzers.linear_modes(recorded)
    assert modes.modes.dims == ("step", "mode")
    assert modes.sel(epoch=1, iteration=3).step == 103
    np.testing.assert_allclose(modes.time[:3], [0, 0.04, 0.08])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": ["first"]}, KeyError, r"No layers \['first'\].*'0.weight'"),
        (
            {"layers": ["1.weight", "0.weight"]},
            ValueError,
            "'0.weight' of shape .* cannot follow '1.weight'",
        ),
        ({"layers": []}, ValueError, "must be matrices; got the shapes"),
        ({"correlation": np.eye(3)}, ValueError, r"shape \(3, 3\).*expected \(4, 16\)"),
        ({"start": 200}, ValueError, "one of the 200 steps .*; got 200"),
        ({"start": -1}, ValueError, "got -1"),
        ({"loss": "rmse"}, ValueError, "must be one of .*; got 'rmse'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    recorded: trajstore.Run, change: dict[str, Any], error: Any, message: str
):
    with pytest.raises(error, match=message):
        analyzers.linear_modes(recorded, **change)


def test_unsuitable_runs_are_refused(example_run: Path, exact_run: Path):
    with pytest.raises(ValueError, match=r"holds sketches.*--exact"):
        analyzers.linear_modes(trajstore.open_run(example_run))
    exact = trajstore.open_run(exact_run)
    with pytest.raises(
        ValueError, match=r"must be matrices; .*Choose some by `layers`"
    ):
        analyzers.linear_modes(exact)
    with pytest.raises(KeyError, match="does not say what its modes are"):
        analyzers.linear_modes(exact, layers=["0.weight", "2.weight"])


def test_nets_with_biases_have_modes_of_their_weights(exact_run: Path):
    run = trajstore.open_run(exact_run)
    modes = analyzers.linear_modes(
        run, layers=["0.weight", "2.weight"], correlation=np.eye(3, 20)
    )
    x = iterates(run)[30]
    product = x["2.weight"] @ x["0.weight"]
    np.testing.assert_allclose(modes.modes[30], np.diag(product), atol=1e-6)
