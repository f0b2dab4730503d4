"""Test ``analyzers.lagged_gradients`` against exact recordings."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

import analyzers
import trajstore
from analyzers._engine.arrays.probed import cosine, length
from tests.analyzers.laziness import fail_if_computed
from trajstore.reading.run import Run

pytest.importorskip("torch")

LAGS = [1, 2, 5, 10, 50]
QUANTITIES = ("cosine", "orthogonal_cosine", "distance")
N_SEEDS = 12


def iterates_of(run: Run) -> Any:
    """Return the gradients and iterates of an exact run, each float64 (step, param)."""
    windows, whole = run.stored.array("window")[:], slice(0, run.layout.size)
    references = np.stack([run.stored.anchors.decode(int(c), whole) for c in windows])
    gradients = run.stored.array("gradient")[:].astype("f8")
    return gradients, references + run.stored.array("displacement")[:].astype("f8")


@pytest.fixture(scope="module")
def exact(exact_run: Path) -> xr.Dataset:
    run = trajstore.open_run(exact_run)
    return analyzers.lagged_gradients(run, lags=LAGS, every=4).compute()


def test_an_exact_run_follows_the_definitions(exact_run: Path, exact: xr.Dataset):
    run = trajstore.open_run(exact_run)
    gradients, iterates = iterates_of(run)
    end = run.stored.vector("final", slice(0, run.layout.size)).astype("f8")
    for k in exact.step.values:
        for lag in LAGS:
            pair = [k, k + lag]
            found = exact.sel(step=k, lag=lag)
            if k + lag >= run.n_steps:
                assert np.isnan(found.cosine)
                continue
            ways = iterates[pair] - end
            along = (gradients[pair] * ways).sum(1) / (ways**2).sum(1)
            beside = gradients[pair] - along[:, None] * ways
            for name, (a, b) in {
                "cosine": gradients[pair],
                "orthogonal_cosine": beside,
            }.items():
                expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                assert float(found[name]) == pytest.approx(expected, abs=1e-8)
            far = np.linalg.norm(np.subtract(*iterates[pair]))
            assert float(found.distance) == pytest.approx(far, rel=1e-8)
    assert float(abs(exact.cosine_stderr).max()) == 0


def test_errors_agree_with_standard_errors(
    tmp_path: Path, train_small: Callable[..., Any], exact: xr.Dataset
):
    """Compare recordings of one training with other random signs, 30 elements per probe."""
    z: dict[str, list[Any]] = {name: [] for name in QUANTITIES}
    for seed in range(N_SEEDS):
        path = tmp_path / str(seed)
        train_small(
            partial(trajstore.Recorder, path, seed=seed), sketch_bits=512, probes=32
        )
        found = analyzers.lagged_gradients(trajstore.open_run(path), lags=LAGS, every=4)
        found = found.compute()
        for name in QUANTITIES:
            score = (found[name] - exact[name]) / found[f"{name}_stderr"]
            # Distances of neighbours are exact.
            z[name].append(score.where(found[f"{name}_stderr"] != 0).values)
    for name, scores in z.items():
        finite = np.array(scores)[:, np.isfinite(exact.cosine.values)]
        finite = finite[np.isfinite(finite)]
        assert 0.8 < finite.std() < 1.2, name
        # All pairs of a recording share their signs: only recordings are independent.
        assert abs(finite.mean()) < 4 / np.sqrt(N_SEEDS), name


def test_probes_of_a_known_vector():
    """The mean and spread of independent probes follow the formulas."""
    rng = np.random.default_rng(0)
    a, noise = rng.normal(size=(2, 2000, 256))
    estimate = cosine(a, 0.6 * a + 0.8 * noise)
    assert estimate.value.mean() == pytest.approx(0.6, abs=0.005)
    spread = (1 - 0.6**2) / np.sqrt(256)
    assert estimate.value.std() == pytest.approx(spread, rel=0.1)
    assert estimate.stderr.mean() == pytest.approx(spread, rel=0.05)
    norm = length(a)
    assert norm.value.mean() == pytest.approx(16, rel=0.005)
    assert norm.stderr.mean() == pytest.approx(norm.value.std(), rel=0.1)
    assert length(np.zeros(4)).stderr == 0


def test_nothing_is_computed_before_it_is_asked_for(example_run: Path):
    run = trajstore.open_run(example_run)
    with dask.config.set(scheduler=fail_if_computed):
        lagged = analyzers.lagged_gradients(run, every=12)
    assert lagged.sizes == {"step": 5, "lag": 6}
    np.testing.assert_array_equal(lagged.epoch, range(5))
    assert lagged.cosine.attrs["long_name"] == "cosine of two gradients"


def test_pieces_do_not_matter(example_run: Path, monkeypatch: pytest.MonkeyPatch):
    run = trajstore.open_run(example_run)
    whole = analyzers.lagged_gradients(run, every=2, lags=[3]).compute()
    module = sys.modules["analyzers.gradients.lagged_gradients"]
    monkeypatch.setattr(module, "BASES", 7)
    monkeypatch.setattr(module, "ROWS", 1)
    parts = analyzers.lagged_gradients(run, every=2, lags=[3])
    assert parts.chunks["step"] == (7, 7, 7, 7, 2)
    xr.testing.assert_allclose(whole, parts.compute(), rtol=1e-6)


@pytest.mark.parametrize("options", [{"lags": [0]}, {"lags": []}, {"every": 0}])
def test_lags_below_one_are_refused(example_run: Path, options: dict[str, Any]):
    with pytest.raises(ValueError, match="must be at least 1"):
        analyzers.lagged_gradients(trajstore.open_run(example_run), **options)


def test_short_steps_are_resolved(tmp_path: Path):
    """After large steps, updates are much shorter than the last place of stored probes."""
    from tests.analyzers.geometry.seeded import train

    torch = pytest.importorskip("torch")
    trained = train(
        tmp_path,
        lambda model: torch.optim.SGD(model.parameters(), lr=0.3),
        rate=lambda step: 1.0 if step % 16 < 8 else 1e-4,
        n_seeds=6,
        total_steps=None,
    )
    lags = [1, 2, 4]
    late = np.arange(24, 27)
    z = []
    for run in trained.runs:
        found = analyzers.lagged_gradients(run, lags=lags, every=1).compute()
        for i, lag in enumerate(lags):
            move = trained.x[late + lag] - trained.x[late]
            exact = np.linalg.norm(move, axis=1)
            value = found.distance.values[late, i]
            if lag == 1:
                np.testing.assert_allclose(value, exact, rtol=1e-3)
                assert (found.distance_stderr.values[late, i] == 0).all()
            else:
                z.append((value - exact) / found.distance_stderr.values[late, i])
    assert abs(np.array(z)).max() < 5
