"""Test ``analyzers.curvature.convexity`` on quadratics and on non-convex functions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import analyzers
from tests.analyzers.paths import path_of, products
from trajstore.reading.run import Run, open_run

torch = pytest.importorskip("torch")

from trajstore import Recorder

N_STEPS, STEPS_PER_EPOCH, LR = 40, 4, 0.1
SETTINGS = {"full_batch": True, "weight_decay": 0.0}


def matrix() -> Any:
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((60, 60)) / 12
    return factor @ factor.T


def quadratic(x: Any) -> Any:
    A = torch.from_numpy(matrix())
    return 0.5 * x.double() @ A @ x.double() + 1.0


def waves(x: Any) -> Any:
    return torch.cos(x).sum()


def record(
    path: Path,
    loss_of: Callable[[Any], Any] = quadratic,
    *,
    momentum: float = 0.0,
    at_end: str | None = None,
    attrs: dict[str, Any] | None = None,
    **options: Any,
) -> Run:
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.x = torch.nn.Parameter(torch.randn(60))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=momentum)
    training = SETTINGS | {"optimizer": "momentum" if momentum else "sgd"}
    attrs = {"training": training} if attrs is None else attrs

    def backward() -> Any:
        optimizer.zero_grad()
        loss = loss_of(model.x)
        loss.backward()
        return loss

    with Recorder(
        path, model, optimizer, steps_per_epoch=STEPS_PER_EPOCH, attrs=attrs, **options
    ) as recorder:
        for step in range(N_STEPS):
            if step % STEPS_PER_EPOCH == 0:
                recorder.measure("full_batch", loss=backward())
            recorder.log(loss=backward())
            optimizer.step()
        if at_end is not None:
            recorder.measure(at_end, loss=backward())
    return open_run(path)


@pytest.mark.parametrize("at_end", ["full_batch", "same_batch"])
def test_slack_on_a_quadratic_is_half_of_the_quadratic_form(
    tmp_path: Path, at_end: str
):
    run = record(tmp_path / "run.zarr", at_end=at_end, exact=True)
    found = analyzers.convexity(run).compute()
    x = path_of(run).iterates[:, :60]
    away = x[:-1] - x[-1]
    expected = 0.5 * products(away @ matrix(), away)
    np.testing.assert_allclose(found.slack, expected, rtol=1e-3, atol=3e-6)
    assert not found.slack_stderr.any()
    assert not found.is_violated.any()
    assert found.sel(epoch=3).sizes["step"] == STEPS_PER_EPOCH
    f = 0.5 * x[-1] @ matrix() @ x[-1] + 1
    np.testing.assert_allclose(found.attrs["reference_loss"], f, rtol=1e-6)


def test_a_given_loss_shifts_the_slack(tmp_path: Path):
    run = record(tmp_path / "run.zarr", at_end="full_batch", exact=True)
    found = analyzers.convexity(run)
    loss = found.attrs["reference_loss"]
    lower = analyzers.convexity(run, reference_loss=loss - 10).compute()
    np.testing.assert_allclose(lower.slack, found.slack - 10, rtol=1e-9)
    assert lower.is_violated.all()


def test_errors_of_estimates_match_their_standard_errors(
    example_run: Path, exact_run: Path
):
    """Compare estimated with exact inner products of the same training run."""
    estimated, exact = (
        analyzers.convexity(open_run(path), reference_loss=0.1).compute()
        for path in (example_run, exact_run)
    )
    z = ((estimated.slack - exact.slack) / estimated.slack_stderr).values[:-8]
    assert 0.75 < z.std() < 1.25
    assert np.abs(z).max() < 4


def test_an_epoch_has_the_loss_measured_at_its_start(tmp_path: Path):
    run = record(tmp_path / "run.zarr", exact=True)
    found = analyzers.convexity(run, reference=5)
    loss = float(run.steps.loss[5 * STEPS_PER_EPOCH])
    assert found.attrs["reference_loss"] == loss
    assert found.attrs["reference"] == "epoch 5"
    rows = analyzers.convexity(run.measured("full_batch"), reference=5).compute()
    at = rows.step.values
    np.testing.assert_allclose(rows.slack, found.slack.values[at], rtol=1e-4, atol=1e-6)


def test_waves_violate_convexity(tmp_path: Path):
    run = record(tmp_path / "run.zarr", waves, at_end="full_batch", exact=True)
    found = analyzers.convexity(run).compute()
    # The path starts near maxima and ends in minima.
    assert 5 < found.is_violated.sum() < 40
    path = path_of(run)
    f = np.cos(path.iterates[:, :60]).sum(1)
    away = path.iterates[:-1] - path.iterates[-1]
    expected = f[-1] - f[:-1] + products(path.gradients, away)
    np.testing.assert_allclose(found.slack, expected, rtol=1e-3, atol=3e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_slack_of_neighbours_is_half_of_the_quadratic_form_of_the_update(
    tmp_path: Path, momentum: float
):
    run = record(tmp_path / "run.zarr", momentum=momentum, exact=True)
    found = analyzers.adjacent_convexity(run)
    assert found.attrs["rule"] == ("momentum" if momentum else "plain descent")
    u = path_of(run).updates[:-1, :60]
    expected = 0.5 * products(u @ matrix(), u)
    for name in ("slack", "slack_back"):
        np.testing.assert_allclose(found[name][:-1], expected, rtol=1e-2, atol=3e-6)
        assert np.isnan(found[name].values[-1])
    assert not found.is_violated.any()
    assert not found.is_violated_back.any()


def test_neighbours_on_waves_violate_convexity(tmp_path: Path):
    run = record(tmp_path / "run.zarr", waves, exact=True)
    found = analyzers.adjacent_convexity(run)
    assert 5 < found.is_violated.sum() < 40
    assert 5 < found.is_violated_back.sum() < 40
    path = path_of(run)
    f = np.cos(path.iterates[:, :60]).sum(1)
    expected = np.diff(f)[:-1] - products(path.gradients, path.updates)[:-1]
    np.testing.assert_allclose(found.slack[:-1], expected, rtol=1e-2, atol=3e-5)


def test_losses_of_different_examples_are_not_compared(tmp_path: Path):
    attrs = {"training": {"full_batch": False, "optimizer": "sgd"}}
    run = record(tmp_path / "run.zarr", attrs=attrs)
    with pytest.raises(ValueError, match=r"different examples.*--full-batch"):
        analyzers.adjacent_convexity(run)


def test_errors_say_what_to_do(tmp_path: Path, paper_runs: dict[str, Run]):
    run = record(tmp_path / "run.zarr")
    with pytest.raises(
        ValueError, match=r"at 'final' was not recorded.*reference_loss"
    ):
        analyzers.convexity(run)
    with pytest.raises(KeyError, match=r"No losses.*recorder.log\(loss=loss\)"):
        analyzers.convexity(paper_runs["sgd"])
    with pytest.raises(KeyError, match="No losses"):
        analyzers.adjacent_convexity(paper_runs["full"])


def chord(losses: list[float], fractions: list[float]) -> xr.DataArray:
    return xr.DataArray(losses, {"fraction": fractions}, ("fraction",))


def test_chords_lie_above_a_convex_function():
    t = np.linspace(0, 1, 5)
    found = analyzers.chord_convexity(chord([*(t**2)], [*t]))
    np.testing.assert_allclose(found.slack, t - t**2, atol=1e-15)
    assert not found.is_violated.any()
    above = analyzers.chord_convexity(chord([1.0, 4.0, 2.0], [0.0, 0.25, 1.0]))
    np.testing.assert_allclose(above.slack, [0, 1.25 - 4, 0])
    assert above.is_violated.values.tolist() == [False, True, False]


def test_a_chord_without_its_ends_is_refused():
    with pytest.raises(ValueError, match=r"from 0 to 1, got 0 to 0\.5"):
        analyzers.chord_convexity(chord([1.0, 2.0], [0.0, 0.5]))
