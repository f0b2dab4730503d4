"""Test ``analyzers.path_distances`` against iterates kept in float64."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr

import analyzers
import trajstore
from analyzers.comparison import path_distances
from analyzers.comparison.products import probe
from tests.analyzers.geometry.seeded import Seeded, train
from tests.analyzers.laziness import fail_if_computed
from tests.analyzers.paths import path_of

torch = pytest.importorskip("torch")

Array = npt.NDArray[np.float64]

STEPS = [0, 1, 3, 5, 14, 16, 17, 20, 30, 31, 33, 45, 60, 62, 64]
N_SEEDS = 6

NETWORKS: dict[str, dict[str, Any]] = {
    "packed": {"widths": (16, 40, 4), "sketch_bits": 1024},
    "folded": {"widths": (64, 128, 10), "sketch_bits": 2048},
}


def sgd(model: Any) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)


def adamw(model: Any) -> Any:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def between(iterates: Array, others: Array) -> Array:
    """Return the distances of all pairs of rows."""
    result: Array = np.linalg.norm(iterates[:, None] - others, axis=-1)
    return result


@pytest.fixture(scope="module", params=NETWORKS)
def seeded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Seeded:
    folder = tmp_path_factory.mktemp(request.param)
    options = NETWORKS[request.param]
    return train(folder, adamw, n_seeds=N_SEEDS, probes=256, **options)


def test_errors_agree_with_standard_errors(seeded: Seeded):
    expected = between(seeded.x[STEPS], seeded.x[STEPS])
    pairs = np.triu_indices(len(STEPS), 1)
    scores, errors = [], []
    for run in seeded.runs:
        found = analyzers.path_distances(run, steps=STEPS).compute()
        assert found.step.values.tolist() == STEPS
        np.testing.assert_array_equal(np.diagonal(found.distance), 0)
        np.testing.assert_array_equal(found.distance, found.distance.T)
        error = (found.distance.values - expected)[pairs]
        errors.append(error / expected[pairs])
        scores.append(error / (found.distance_stderr.values[pairs] + 1e-7))
    # Few of the random signs are independent: those of 6 recordings.
    assert 0.7 < np.sqrt(np.mean(np.square(scores))) < 1.3
    assert np.abs(scores).max() < 6
    # With probes alone the error would be 1 / sqrt(2 * 256) = 0.044.
    assert np.sqrt(np.mean(np.square(errors))) < 0.015


def test_neighbours_have_the_length_of_the_update(seeded: Seeded):
    run = seeded.runs[0]
    found = analyzers.path_distances(run, steps=range(20, 30)).compute()
    lengths = run.steps.update_norm.values[20:29]
    np.testing.assert_allclose(np.diagonal(found.distance, 1), lengths, rtol=1e-6)
    assert (np.diagonal(found.distance_stderr, 1) == 0).all()


def test_stored_iterates_are_compared_exactly(seeded: Seeded):
    found = analyzers.path_distances(seeded.runs[0]).compute()
    expected = between(seeded.x[found.step], seeded.x[found.step])
    # Anchors are 8-bit codes of the iterates.
    assert np.abs(found.distance - expected).max() < 1e-3 * expected.max()
    assert float(found.distance_stderr.max()) < 1e-6 * expected.max()


def test_two_runs_from_one_seed_begin_at_one_point(tmp_path: Path):
    options: dict[str, Any] = {"n_seeds": 2, "probes": 256} | NETWORKS["folded"]
    first, second = (
        train(tmp_path / name, make, **options)
        for name, make in (("sgd", sgd), ("adamw", adamw))
    )
    expected = np.vstack([first.x[STEPS], second.x[STEPS]])
    is_other = np.repeat([False, True], len(STEPS))
    # The recorders of a pair of runs have the same seed, or another.
    for i, j in ((0, 0), (0, 1), (1, 0)):
        runs = [first.runs[i], second.runs[j]]
        found = analyzers.path_distances(runs, steps=STEPS).compute()
        starts = found.isel(point=0, other_point=len(STEPS))
        assert starts.run.item() != starts.other_run.item()
        assert starts.distance <= starts.distance_stderr < 1e-6
        whole = analyzers.path_distances(runs).compute()
        [a, b] = np.flatnonzero(whole.step == 0)
        assert whole.distance[a, b] <= whole.distance_stderr[a, b] < 1e-6
        across = is_other[:, None] & ~is_other
        error = (found.distance - between(expected, expected)).values
        score = (error / (found.distance_stderr + 1e-7)).values[across]
        assert np.abs(score).max() < 5
        # The bound that unrelated signs leave is wider than the errors.
        assert 0.2 < np.sqrt((score**2).mean()) < 1.3


def test_a_run_is_at_no_distance_from_itself(seeded: Seeded):
    run = seeded.runs[0]
    found = analyzers.path_distances([run, run.location], steps=STEPS).compute()
    names = list(dict.fromkeys(found.run.values))
    assert names == ["0.zarr", "0.zarr (2)"]
    n = len(STEPS)
    assert (np.diagonal(found.distance[:n, n:]) == 0).all()
    assert (np.diagonal(found.distance_stderr[:n, n:]) == 0).all()
    whole = analyzers.path_distances([run, run]).compute()
    n = whole.sizes["point"] // 2
    assert (np.diagonal(whole.distance[:n, n:]) == 0).all()


def test_exact_runs_have_no_errors(exact_run: Path):
    iterates = path_of(trajstore.open_run(exact_run)).iterates
    steps = [0, 1, 7, 25, 26, 40, 59, 60]
    found = analyzers.path_distances(exact_run, steps=steps).compute()
    expected = between(iterates[steps], iterates[steps])
    np.testing.assert_allclose(found.distance, expected, rtol=1e-6, atol=1e-6)
    assert float(found.distance_stderr.max()) < 1e-6
    assert found.kind.values.tolist() == [*["step"] * 7, "final"]


@pytest.mark.parametrize("shape", NETWORKS)
def test_probes_of_parts_are_the_probes_of_the_vector(shape: str, tmp_path: Path):
    options: dict[str, Any] = {"n_seeds": 1, "n_steps": 2, "probes": 64}
    [run] = train(tmp_path, sgd, **options | NETWORKS[shape]).runs
    vector = run.stored.vector("final", slice(0, run.layout.size))
    expected = run.stored.probes(run.stored.folded(vector))
    half = 1024 * (run.layout.size // 2048)
    parts = [slice(0, half), slice(half, run.layout.size)]
    found = sum(probe(run, vector[None, part], part)[0] for part in parts)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_lost_steps_have_no_distance(tmp_path: Path, train_small: Callable[..., Any]):
    path = tmp_path / "run.zarr"
    train_small(partial(trajstore.Recorder, path), sketch_bits=1024, probes=64)
    target = path / "displacement_probes" / "c" / "0" / "0"
    target.write_bytes(b"\0" * target.stat().st_size)
    with pytest.warns(UserWarning, match="its values read as NaN"):
        found = analyzers.path_distances(path, steps=[3, 60]).compute()
    assert np.isnan(found.distance[0, 1])
    assert found.distance[1, 1] == 0


def test_nothing_is_computed_before_it_is_asked_for(example_run: Path):
    with dask.config.set(scheduler=fail_if_computed):
        lazy = analyzers.path_distances(example_run, steps=[0, 7])
    assert isinstance(lazy, xr.Dataset)
    assert lazy.distance.attrs["definition"] == "|x_j - x_k|"
    assert lazy.distance_stderr.attrs["units"] == "1"


def test_steps_that_a_run_did_not_reach_are_left_out(example_run: Path, tmp_path: Path):
    shutil.copytree(example_run, tmp_path / "run.zarr")
    found = analyzers.path_distances(example_run, steps=[50, 60, 70])
    assert found.step.values.tolist() == [50, 60]


def test_steps_that_no_run_has_are_refused(example_run: Path):
    with pytest.raises(ValueError, match=r"any of the steps \[99\]; .* has 60 steps"):
        analyzers.path_distances(example_run, steps=[99])
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        analyzers.path_distances(example_run, steps=[-1])


def test_too_many_points_are_refused(
    example_run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(path_distances, "MAX_POINTS", 3)
    with pytest.raises(ValueError, match="choose at most 3"):
        analyzers.path_distances(example_run, steps=range(5))
