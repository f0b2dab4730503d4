"""Test ``analyzers.path_geometry`` on runs that failed, stopped early or have odd gradients."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyzers
import trajstore
from tests.analyzers.geometry.descent import by_hand, recorded, z_scores

torch = pytest.importorskip("torch")

from train.protocols.two_run import two_run


def spoil_one_step(value: float, at: int = 17) -> Callable[[int, Any], None]:
    def spoil(step: int, gradient: Any) -> None:
        if step == at:
            gradient.view(-1)[3] = value

    return spoil


@pytest.mark.parametrize(
    "value",
    [
        np.nan,
        np.inf,
    ],
    ids=["nan", "inf"],
)
@pytest.mark.parametrize("mode", ["sketched", "exact"])
def test_gradient_that_is_not_finite_spoils_its_step_only(
    tmp_path: Path, mode: str, value: float
):
    train = partial(by_hand, spoil=spoil_one_step(value))
    options: dict[str, Any] = (
        {"exact": True} if mode == "exact" else {"sketch_bits": 256, "probes": 256}
    )
    run = recorded(tmp_path / "run.zarr", train, **options)
    result = analyzers.path_geometry(run).compute()
    truth = two_run(train)
    others = np.arange(48) != 17
    for name in ("gamma", "rsi", "lolr", "gamma_stderr", "rsi_stderr", "lolr_stderr"):
        assert np.isnan(result[name][17])
        assert np.isfinite(result[name][others]).all()
    if mode == "exact":
        np.testing.assert_allclose(result.gamma[others], truth.gamma[others], atol=1e-6)
    else:
        z = z_scores(result, truth, "gamma")[others]
        # The bound is three standard errors of the standard deviation of 47 numbers.
        assert 0.69 < float(z.std()) < 1.31
        # The errors are no worse than without the spoilt gradient.
        healthy = recorded(tmp_path / "healthy.zarr", by_hand, **options)
        undisturbed = analyzers.path_geometry(healthy).compute()
        np.testing.assert_array_less(
            result.gamma_stderr[others], 1.5 * undisturbed.gamma_stderr[others]
        )
    assert int(analyzers.epoch_means(result).n_missing.sum()) == 1


# NaN is not equal to NaN.
@pytest.mark.filterwarnings("ignore:The parameters have changed")
@pytest.mark.filterwarnings(r"ignore:The target x\* .* is not finite")
@pytest.mark.parametrize("mode", ["sketched", "exact"])
def test_steps_before_the_parameters_became_nan_can_be_measured(
    tmp_path: Path, mode: str
):
    train = partial(by_hand, spoil=spoil_one_step(np.nan), heal=False)
    options: dict[str, Any] = (
        {"exact": True} if mode == "exact" else {"sketch_bits": 256, "probes": 256}
    )
    run = recorded(tmp_path / "run.zarr", train, **options)
    result = analyzers.path_geometry(run, reference=0).compute()
    # At the step with the NaN gradient the parameters are still finite.
    assert np.isfinite(result.distance[:18]).all()
    assert np.isfinite(result.gamma[1:17]).all()
    for name in ("gamma", "gamma_stderr", "rsi", "eb", "lolr"):
        assert np.isnan(result[name][17:]).all()
    assert np.isnan(result.distance[18:]).all()
    against_end = analyzers.path_geometry(run).compute()
    assert np.isnan(against_end.gamma).all()


@pytest.mark.parametrize("mode", ["sketched", "exact"])
def test_step_with_zero_gradient_has_no_direction(tmp_path: Path, mode: str):
    def spoil(step: int, gradient: Any) -> None:
        if step == 17:
            gradient.zero_()

    options: dict[str, Any] = (
        {"exact": True} if mode == "exact" else {"sketch_bits": 256, "probes": 256}
    )
    run = recorded(tmp_path / "run.zarr", partial(by_hand, spoil=spoil), **options)
    result = analyzers.path_geometry(run).compute()
    for name in ("gamma", "gamma_stderr", "lolr", "lolr_stderr"):
        assert np.flatnonzero(np.isnan(result[name])).tolist() == [17]
    for name in ("rsi", "rsi_stderr", "eb", "eb_stderr"):
        assert float(result[name][17]) == 0
        assert np.isfinite(result[name]).all()
    assert float(result.distance[17]) > 0


@pytest.mark.parametrize("mode", ["sketched", "exact"])
def test_one_step_of_gradient_descent_goes_along_the_gradient(
    tmp_path: Path, mode: str
):
    """x_0 - x_1 = lr g, hence gamma = 1, loLR = lr and RSI = 1 / lr."""
    options: dict[str, Any] = (
        {"exact": True} if mode == "exact" else {"sketch_bits": 256, "probes": 256}
    )
    train = partial(by_hand, n_steps=1)
    run = recorded(tmp_path / "run.zarr", train, **options)
    result = analyzers.path_geometry(run).compute()
    for name, expected in {"gamma": 1, "lolr": 0.1, "rsi": 10, "eb": 10}.items():
        # The tolerance covers float32 rounding and the errors of estimates.
        tolerance = 1e-5 * expected + 4 * float(result[f"{name}_stderr"][0])
        assert abs(float(result[name][0]) - expected) < tolerance
    assert float(result.distance_stderr[0]) < 1e-6
    assert float(result.gamma_stderr[0]) < 0.15


def test_run_without_steps_is_refused(tmp_path: Path):
    run = recorded(tmp_path / "run.zarr", partial(by_hand, n_steps=0))
    with pytest.raises(ValueError, match=r"run\.zarr holds no steps yet"):
        analyzers.path_geometry(run)


def test_crashed_run_is_measured_up_to_the_crash(tmp_path: Path):
    def crash(step: int, _gradient: Any) -> None:
        if step == 30:
            raise RuntimeError("out of memory")

    path = tmp_path / "run.zarr"
    with pytest.raises(RuntimeError, match="out of memory"):
        recorded(path, partial(by_hand, spoil=crash), sketch_bits=256, probes=256)
    result = analyzers.path_geometry(trajstore.open_run(path)).compute()
    assert result.attrs["status"] == "failed"
    # A run that ends at the crash has the same steps.
    truth = two_run(partial(by_hand, n_steps=30))
    z = z_scores(result, truth, "gamma")
    assert z.size == 30
    # The bound is three standard errors of the standard deviation of 30 numbers.
    assert 0.6 < float(z.std()) < 1.4


def test_running_run_is_measured_against_its_anchors(tmp_path: Path):
    results = []

    @contextmanager
    def observe(*args: Any, **options: Any) -> Iterator[Any]:
        from trajstore import Recorder

        path = tmp_path / "run.zarr"
        with Recorder(path, *args, sketch_bits=256, probes=256, **options) as recorder:
            yield recorder
            # All steps are done, but the run is not closed yet.
            recorder.flush()
            run = trajstore.open_run(path)
            with pytest.raises(
                ValueError,
                match=r"no final iterate: its status is 'running'.*reference=3",
            ):
                analyzers.path_geometry(run)
            results.append(analyzers.path_geometry(run, reference=3).compute())
            recorder.snapshot("end")

    by_hand(observe)
    [early] = results
    closed = trajstore.open_run(tmp_path / "run.zarr")
    late = analyzers.path_geometry(closed, reference=3).compute()
    assert early.attrs["status"] == "running"
    # Only the last window differs, because its end is now known.
    before = slice(0, int(closed.windows.start[-1]))
    np.testing.assert_allclose(early.gamma[before], late.gamma[before], rtol=1e-10)
    np.testing.assert_allclose(early.distance, late.distance, rtol=0.05)


# Gradients that do not look like noise

HEAVY = [0, 3, 64, 65, 300, 511]


@pytest.mark.slow
def test_errors_are_known_where_a_few_columns_have_most_of_the_energy(tmp_path: Path):
    """Six of 512 columns have 92 % of the energy, as if inputs differed in size."""

    def spoil(_step: int, gradient: Any) -> None:
        if gradient.ndim == 2:
            gradient[:, HEAVY] *= 32

    train = partial(
        by_hand, shape=(64, 512), n_steps=200, steps_per_epoch=50, spoil=spoil
    )
    run = recorded(tmp_path / "run.zarr", train, sketch_bits=1024, probes=256)
    assert run.stored.sketch.fold.n_rows > 16
    result = analyzers.path_geometry(run).compute()
    truth = two_run(train)
    for name in ("gamma", "lolr"):
        z = z_scores(result, truth, name)
        # 200 steps: the deviation is known to 0.05. The bounds are six times that, because
        # the bucket energies from the sketches are estimates as well.
        assert 0.7 < float(z.std()) < 1.3
        assert abs(float(z.mean())) < 3.5 / np.sqrt(z.size)


@pytest.mark.parametrize("optimizer", ["AdamW", "Adam"])
def test_weight_decay_of_a_decoupled_optimizer_is_warned_of(
    optimizer: str, tmp_path: Path
):
    model = torch.nn.Linear(8, 4)
    made = getattr(torch.optim, optimizer)(model.parameters(), weight_decay=0.1)
    with trajstore.Recorder(tmp_path / "run.zarr", model, made, steps_per_epoch=5):
        for _ in range(10):
            made.zero_grad()
            model(torch.randn(3, 8)).square().sum().backward()
            made.step()
    run = trajstore.open_run(tmp_path / "run.zarr")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        analyzers.path_geometry(run)
        assert not caught
        analyzers.path_geometry(run, weight_decay=0.1)
    messages = [str(w.message) for w in caught]
    if optimizer == "Adam":
        assert not messages
    else:
        [message] = messages
        assert "was trained by AdamW, which shrinks the parameters itself" in message
        assert caught[0].filename == __file__
