"""Test what the conditions say of a run that has converged to rounding."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

import analyzers
from analyzers.conditions import commands
from analyzers.conditions.rounding import is_rounding, loss_epsilon
from trajstore import open_run

SINGLE, DOUBLE = (float(np.finfo(t).eps) for t in (np.float32, np.float64))


class Converged(NamedTuple):
    """Least squares by gradient descent in float64, long after its last digit has settled."""

    path: Path
    target: dict[str, Any]
    minimum: float
    losses: Any
    excess: Any  # f(x_k) - f(x*) without cancellation, (step,)
    grad_sq: Any  # (step,), from x_k - x*
    mu: float  # smallest curvature

    @property
    def n_steps(self) -> int:
        return len(self.losses)


@pytest.fixture(scope="module")
def converged(tmp_path_factory: pytest.TempPathFactory) -> Converged:
    torch = pytest.importorskip("torch")
    from trajstore import Recorder

    rng = np.random.default_rng(0)
    A, b = rng.normal(size=(40, 8)), rng.normal(size=40)
    H = A.T @ A / 40
    best = np.linalg.solve(H, A.T @ b / 40)
    x, curvatures = np.zeros(8), np.linalg.eigvalsh(H)
    path = tmp_path_factory.mktemp("converged") / "run.zarr"
    losses, iterates = [], []
    tensor = torch.from_numpy(x)
    with Recorder(
        path, {"x": tensor}, None, exact=True, attrs={"full_batch": True}
    ) as recorder:
        for _ in range(400):
            gradient = A.T @ (A @ x - b) / 40
            losses.append(((A @ x - b) ** 2).mean() / 2)
            iterates.append(x.copy())
            recorder.log(loss=losses[-1])
            with recorder.step({"x": torch.from_numpy(gradient)}):
                x -= gradient / (3 * curvatures[-1])
    away = np.array(iterates) - best
    return Converged(
        path,
        {"x": best},
        ((A @ best - b) ** 2).mean() / 2,
        np.array(losses),
        ((away @ H) * away).sum(1) / 2,
        ((away @ H) ** 2).sum(1),
        float(curvatures[0]),
    )


def pairs_of(converged: Converged, optimal_loss: float, n_stderr: float = 0) -> Any:
    run = open_run(converged.path)
    losses = np.full(run.n_steps, converged.minimum)
    terms = analyzers.alpha_beta(
        run,
        reference=converged.target,
        reference_losses=losses,
        optimal_loss=optimal_loss,
    )
    return analyzers.feasible_set(terms, n_stderr=n_stderr)


@pytest.mark.parametrize("is_infimum", [True, False])
def test_the_constant_of_quasar_convexity_is_not_rounding(
    converged: Converged, is_infimum: bool
):
    """It is 2 for a quadratic; the steps at the minimum would give anything from 0."""
    optimal_loss = converged.minimum if is_infimum else 0.0
    pairs = pairs_of(converged, optimal_loss)
    largest = analyzers.largest_alpha(pairs)
    smaller, larger = (
        analyzers.largest_alpha(pairs_of(converged, optimal_loss, n)) for n in (-1, 1)
    )
    assert smaller < largest < larger
    assert smaller <= 2 <= larger + 1e-9
    assert larger - smaller < 0.1
    assert float(pairs["best_beta"]) == 0
    assert 100 < int(pairs["n_rounded"]) < 300
    assert int(pairs["n_steps"]) + int(pairs["n_rounded"]) == converged.n_steps
    assert int(pairs["n_missing"]) == 0
    # Only steps at the minimum are left out.
    assert "rounded by 2.2e-15 of their value" in pairs.attrs["rounding"]
    known = converged.excess > 2000 * DOUBLE * converged.minimum
    assert known.sum() <= int(pairs["n_steps"])


def test_losses_may_be_below_the_infimum_by_rounding(converged: Converged):
    least = converged.losses.min()
    above = np.nextafter(np.nextafter(least, 1), 1)
    assert int(pairs_of(converged, above)["n_rounded"]) > 100
    with pytest.raises(ValueError, match="below optimal_loss = "):
        pairs_of(converged, least * (1 + 1e-13))


def test_a_path_at_the_minimum_has_nothing_to_compare(converged: Converged):
    run = open_run(converged.path)
    losses = np.full(run.n_steps, converged.minimum)
    terms = analyzers.alpha_beta(
        run, reference=converged.target, reference_losses=losses
    ).isel(step=slice(-20, None))
    with pytest.raises(ValueError, match=r"In all 20 steps .* are rounding; there is"):
        analyzers.feasible_set(terms)


def test_mu_is_not_rounding(converged: Converged):
    run = open_run(converged.path)
    found = analyzers.polyak_lojasiewicz(run, reference_loss=converged.minimum)
    for delta, smallest in zip(found["delta"], found["smallest"], strict=True):
        power = 2 / float(delta)
        mu = found["mu"].sel(delta=delta).values
        true = converged.grad_sq / (2 * converged.excess**power)
        known = np.isfinite(mu)
        np.testing.assert_allclose(mu[known], true[known], rtol=0.01 * power)
        assert float(smallest) == pytest.approx(true[known].min(), rel=0.02)
    smallest = float(found["smallest"].sel(delta=2))
    assert 0.99 * converged.mu < smallest < 2 * converged.mu
    assert 100 < int(found["n_rounded"]) <= int(found["n_missing"])
    assert found.attrs["mu_is"].startswith("exact up to rounding if f* is the infimum")
    assert "a lower bound if f* is below it" in found.attrs["mu_is"]
    # Losses may be below f* by rounding.
    above = np.nextafter(converged.losses.min(), 1)
    found = analyzers.polyak_lojasiewicz(run, reference_loss=above)
    assert found.attrs["mu_is"].startswith("exact")


def test_gradients_of_rounding_bound_no_mu(converged: Converged):
    """With f* below the infimum, losses differ from it by much, and gradients vanish."""
    found = analyzers.polyak_lojasiewicz(open_run(converged.path), reference_loss=0)
    rounded = np.isnan(found["mu"].sel(delta=2).values)
    assert int(found["n_rounded"]) == rounded.sum() > 20
    assert rounded[-20:].all()
    kept = found["mu"].sel(delta=2).values[~rounded]
    true = converged.grad_sq[~rounded] / (2 * converged.losses[~rounded])
    # Of the smallest kept gradients, a tenth may be rounding.
    np.testing.assert_allclose(np.sqrt(kept), np.sqrt(true), rtol=0.1)


def test_theta_is_not_rounding(converged: Converged):
    found = analyzers.aiming(open_run(converged.path), reference=converged.target)
    theta = found["theta"].values
    true = 2 * converged.excess / converged.losses
    kept = ~np.isnan(theta)
    assert 20 < (~kept).sum() < 350
    assert (theta[kept] > 0).all()
    np.testing.assert_allclose(theta[kept], true[kept], rtol=0.01)
    assert (true[~kept] < 1001 * DOUBLE).all()
    np.testing.assert_array_equal(np.isnan(found["theta_stderr"]), ~kept)


@pytest.mark.parametrize(
    ("is_double", "losses", "expected"),
    [
        (False, [0.1, 0.2], SINGLE),
        (True, [0.1, 0.2], DOUBLE),
        (True, [0.1, np.nan], DOUBLE),
        (True, np.array([0.1, 0.2, np.nan], np.float32), SINGLE),
        (True, [1e300, 0.5], DOUBLE),
    ],
)
def test_losses_are_rounded_like_their_type(
    is_double: bool, losses: Any, expected: float
):
    run: Any = SimpleNamespace(spec=SimpleNamespace(float64=is_double))
    assert loss_epsilon(run, np.asarray(losses, np.float64)) == expected


def test_what_is_not_known_or_0_is_not_rounding():
    error = np.array([1.0, 1.0, 1.0, 0.0])
    values = np.array([99.0, 101.0, np.nan, 0.0])
    assert is_rounding(error, values).tolist() == [True, False, False, False]
    assert is_rounding(error, values, 2 * values).tolist() == [False] * 4


def test_commands_say_what_is_rounding(
    converged: Converged, tmp_path: Path, traj_analyze: Callable[..., str]
):
    np.savez(tmp_path / "best.npz", **converged.target)
    least = repr(float(converged.minimum))
    options = ("--reference", tmp_path / "best.npz", "--reference-loss", least)
    printed = " ".join(traj_analyze("alpha-beta", converged.path, *options).split())
    pairs = pairs_of(converged, 0)
    n = int(pairs["n_rounded"])
    assert f"{n} steps are left out: nothing but rounding is left" in printed
    assert f"holds at all {converged.n_steps - n} steps" in printed
    loss = ("--reference-loss", least)
    printed = traj_analyze("polyak-lojasiewicz", converged.path, *loss)
    printed = " ".join(printed.split())
    assert (
        "are left out: nothing but rounding is left of their loss minus f*" in printed
    )
    assert "do not bound mu" not in printed
    printed = " ".join(traj_analyze("aiming", converged.path, *options[:2]).split())
    assert "steps have no theta: nothing but rounding is left" in printed


def test_tables_show_different_numbers_as_different():
    rows = commands._distinct([1.9999743, 1.9999831, 1.9999918])
    assert rows == ["1.99997", "1.99998", "1.99999"]
    assert commands._distinct([0.1, 0.1, 0.1]) == ["0.1", "0.1", "0.1"]
    assert commands._distinct([np.nan, 1.0, np.inf]) == ["none", "1", "inf"]
    assert len(set(commands._distinct([2.0, np.nextafter(2, 3)]))) == 1
