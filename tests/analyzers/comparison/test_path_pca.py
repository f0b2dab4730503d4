"""Test ``analyzers.path_pca`` against a singular value decomposition of exact iterates."""

import shutil
from pathlib import Path
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr

import analyzers
import trajstore
from analyzers.comparison import products
from analyzers.comparison.arrays.components import principal_components
from tests.analyzers.geometry.seeded import train
from tests.analyzers.laziness import fail_if_computed
from tests.analyzers.paths import path_of

torch = pytest.importorskip("torch")

Array = npt.NDArray[np.float64]

BAR = 1e-3
"""Largest error of a coordinate, relative to the largest coordinate, and of a share."""


def by_svd(iterates: Array, n: int) -> tuple[Array, Array]:
    """Return the principal coordinates of rows and the shares of the variance."""
    u, s, _ = np.linalg.svd(iterates - iterates.mean(0), full_matrices=False)
    return (u * s)[:, :n], s[:n] ** 2 / (s**2).sum()


def assert_agrees(found: xr.Dataset, iterates: Array, tolerance: float = BAR) -> None:
    n = found.sizes["component"]
    expected, shares = by_svd(iterates, n)
    for i in range(n):
        coordinate = found.coordinate.values[:, i]
        sign = np.sign(coordinate @ expected[:, i])
        error = np.abs(coordinate - sign * expected[:, i]).max()
        assert error < tolerance * np.abs(expected[:, i]).max()
    np.testing.assert_allclose(
        found.explained_variance_ratio, shares, atol=tolerance * shares.max()
    )


def test_agrees_with_an_svd_of_exact_iterates(exact_run: Path):
    found = analyzers.path_pca(exact_run, components=3).compute()
    iterates = path_of(trajstore.open_run(exact_run)).iterates
    middle = found.kind.values == "snapshot"
    assert found.step.values[middle] == [27]
    assert found.step.values[-1] == len(iterates) - 1
    assert_agrees(found.isel(component=slice(2)), iterates[found.step.values])
    # The sign of a component is fixed by its largest coordinate.
    largest = np.abs(found.coordinate.values).argmax(0)
    assert (np.take_along_axis(found.coordinate.values, largest[None], 0) > 0).all()


def test_several_runs_share_one_plane(tmp_path: Path):
    makers = [
        lambda model: torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
        lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
    ]
    runs, iterates = [], []
    for i, make in enumerate(makers):
        recorded = train(tmp_path / str(i), make, n_seeds=1)
        runs += recorded.runs
        iterates.append(recorded.x)
    found = analyzers.path_pca(runs).compute()
    assert list(dict.fromkeys(found.run.values)) == ["0/0.zarr", "1/0.zarr"]
    points = [
        iterates[int(name[0])][step]
        for name, step in zip(found.run.values, found.step.values, strict=True)
    ]
    assert_agrees(found, np.array(points))
    # Both start at one point.
    starts = found.coordinate.values[found.step.values == 0]
    np.testing.assert_allclose(starts[0], starts[1], rtol=1e-9)


def test_a_point_has_its_epoch_and_kind(example_run: Path):
    found = analyzers.path_pca(example_run)
    inner = found.isel(point=found.kind.values != "final")
    np.testing.assert_array_equal(inner.epoch, inner.step // 12)
    assert int(found.epoch[-1]) == 4
    assert (np.diff(found.step) >= 0).all()
    assert found.coordinate.attrs["units"] == "1"
    assert found.explained_variance_ratio.attrs["long_name"]


def test_parts_of_the_parameters_add_up(
    example_run: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = analyzers.path_pca(example_run).compute()
    monkeypatch.setattr(products, "VALUES", 0)
    with dask.config.set(scheduler=fail_if_computed):
        lazy = analyzers.path_pca(example_run)
    parts = sum("products_of_part" in str(key) for key in dict(lazy.__dask_graph__()))  # type: ignore[no-untyped-call]
    assert parts == trajstore.open_run(example_run).layout.size / 1024
    xr.testing.assert_allclose(lazy.compute(), whole, rtol=1e-9, atol=1e-9)


def test_damaged_iterates_are_left_out(example_run: Path, tmp_path: Path):
    path = tmp_path / "run.zarr"
    shutil.copytree(example_run, path)
    before = analyzers.path_pca(example_run).compute()
    target = next((path / "snapshots").rglob("c/0"))
    target.write_bytes(b"\0" * target.stat().st_size)
    with pytest.warns(UserWarning, match="its values read as NaN"):
        found = analyzers.path_pca(path).compute()
    lost = found.kind.values == "snapshot"
    assert np.isnan(found.coordinate.values[lost]).all()
    others = found.coordinate.values[~lost]
    assert np.isfinite(others).all()
    # Without the damaged point, only the mean and the components move.
    kept = trajstore.open_run(path)
    assert np.isfinite(found.explained_variance_ratio).all()
    assert np.abs(others - before.coordinate.values[~lost]).max() < 0.2
    assert kept.snapshots == ("middle",)


def test_one_point_has_no_variance(tmp_path: Path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trajstore.Recorder(tmp_path / "run.zarr", model, optimizer) as recorder:
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        recorder.flush()
        found = analyzers.path_pca(tmp_path / "run.zarr", components=1).compute()
    assert found.coordinate.values.tolist() == [[0.0]]
    assert np.isnan(found.explained_variance_ratio).all()


@pytest.mark.parametrize("components", [0, 1000])
def test_impossible_numbers_of_components_are_refused(
    example_run: Path, components: int
):
    with pytest.raises(ValueError, match=f"must be from 1 to .* got {components}"):
        analyzers.path_pca(example_run, components=components)


def test_no_runs_are_refused():
    with pytest.raises(ValueError, match="`runs` is empty"):
        analyzers.path_pca([])


def test_other_architectures_are_refused(example_run: Path, tmp_path: Path):
    model = torch.nn.Sequential(torch.nn.Linear(20, 40), torch.nn.Linear(40, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trajstore.Recorder(tmp_path / "run.zarr", model, optimizer):
        model(torch.ones(1, 20)).sum().backward()
        optimizer.step()
    expected = r"'2.weight': \(3, 40\) and absent; .*'1.weight': absent and \(5, 40\)"
    with pytest.raises(ValueError, match=expected):
        analyzers.path_pca([example_run, tmp_path / "run.zarr"])


def test_the_map_of_a_random_walk_is_the_known_curve():
    """Compare with the covariance min(j, k) of a walk; its map is known in closed form."""
    steps = np.arange(400.0)
    found: Any = principal_components(np.minimum(steps[:, None], steps), 2)
    np.testing.assert_allclose(
        found.explained, 6 / np.pi**2 / np.array([1, 4]), rtol=1e-3
    )
    cosine = np.cos(np.pi * (steps + 0.5) / 400)
    curve = found.coordinates[:, 0] / np.abs(found.coordinates[:, 0]).max()
    np.testing.assert_allclose(np.abs(curve), np.abs(cosine), atol=5e-3)


def test_iterates_between_anchors_are_located_from_probes(tmp_path: Path):
    scores = []
    recorded = train(
        tmp_path,
        lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
        n_seeds=8,
        widths=(64, 128, 10),
        sketch_bits=2048,
        probes=256,
    )
    for run in recorded.runs:
        found = analyzers.path_pca(run, every=5).compute()
        without = analyzers.path_pca(run).compute()
        is_step = found.kind.values == "step"
        assert not set(found.step.values[is_step]) & set(without.step.values)
        stored = found.isel(point=~is_step)
        np.testing.assert_allclose(stored.coordinate, without.coordinate, rtol=1e-9)
        assert (stored.coordinate_stderr == 0).all()
        whole = recorded.x[without.step]
        _, _, v = np.linalg.svd(whole - whole.mean(0), full_matrices=False)
        expected = (recorded.x[found.step] - whole.mean(0)) @ v[:2].T
        expected *= np.sign((expected * found.coordinate.values).sum(0))
        error = (found.coordinate - expected) / found.coordinate_stderr
        scores.append(error.values[is_step])
    assert 0.7 < np.sqrt(np.mean(np.square(scores))) < 1.3


def test_no_iterates_between_anchors_are_refused(example_run: Path):
    with pytest.raises(ValueError, match="`every` must be at least 1, got 0"):
        analyzers.path_pca(example_run, every=0)
