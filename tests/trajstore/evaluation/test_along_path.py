"""Losses along a path agree with losses computed by hand, on the plane of `path_pca`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import analyzers
from trajstore import Recorder, Run, open_run, parameters_at
from trajstore.evaluation import (
    TrainingSetup,
    losses_between,
    losses_on_plane,
    losses_towards,
)
from trajstore.evaluation.along_path import principal_plane

N, BATCH, EPOCHS = 24, 8, 5


def record(path: Path, *, seed: int = 0, width: int = 5) -> tuple[Run, TrainingSetup]:
    """Train a small network; return its run, and the setup."""
    torch.manual_seed(seed)
    data = TensorDataset(torch.randn(N, 6), torch.randint(3, (N,)))
    model = nn.Sequential(
        nn.Linear(6, width), nn.BatchNorm1d(width), nn.Dropout(0.1), nn.Linear(width, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)
    with Recorder(path, model, optimizer, steps_per_epoch=3) as recorder:
        for epoch in range(EPOCHS):
            for indices in torch.randperm(N).split(BATCH):
                optimizer.zero_grad()
                inputs, targets = data[indices]
                cross_entropy(model(inputs), targets).backward()
                optimizer.step()
            if epoch == 2:
                recorder.snapshot("middle")
    setup = TrainingSetup(model=model, loss=cross_entropy, data=data, batch_size=BATCH)
    return open_run(path), setup


@pytest.fixture(name="trained", scope="module")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, TrainingSetup]:
    return record(tmp_path_factory.mktemp("path") / "run.zarr")


def loss_at(setup: TrainingSetup, parameters: dict[str, Any]) -> float:
    """Return the loss of all data, computed with a copy of the model."""
    import copy

    model = copy.deepcopy(setup.model).train()
    model.load_state_dict(
        {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in parameters.items()},
        strict=False,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(setup.seed)
        losses = [
            float(cross_entropy(model(x), y)) * len(x)
            for x, y in torch.utils.data.DataLoader(setup.data, BATCH)
        ]
    return sum(losses) / N


def test_lines_begin_at_iterates_and_end_at_the_target(trained: Any):
    run, setup = trained
    before = {k: v.clone() for k, v in setup.model.state_dict().items()}
    stream = torch.get_rng_state()
    found = losses_towards(run, setup, fractions=[0, 0.3, 1])
    assert found["epoch"].values.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(stream, torch.get_rng_state())
    for name, tensor in setup.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for epoch in (0, 3):
        chord = losses_between(run, setup, epoch, "final", fractions=[0, 0.3, 1])
        np.testing.assert_allclose(found["loss"].sel(epoch=epoch), chord, rtol=1e-12)
    end = loss_at(setup, parameters_at(run, "final"))
    np.testing.assert_allclose(found["loss"].sel(fraction=1), end, rtol=1e-6)
    start = parameters_at(run, 3)
    final = parameters_at(run, "final")
    square = sum(((start[k] - final[k]).astype(float) ** 2).sum() for k in final)
    assert float(found["distance"].sel(epoch=3)) == pytest.approx(square**0.5, rel=1e-6)


def test_the_plane_is_that_of_path_pca(trained: Any):
    run, _ = trained
    plane = principal_plane([run])
    path = analyzers.path_pca(run).compute()
    expected = path["coordinate"].values
    np.testing.assert_allclose(
        plane.coordinates, expected, atol=1e-5 * abs(expected).max()
    )
    np.testing.assert_allclose(
        plane.shares, path["explained_variance_ratio"], atol=1e-6
    )
    np.testing.assert_array_equal(plane.steps, path["step"])
    np.testing.assert_allclose(
        plane.directions @ plane.directions.T, np.eye(2), atol=1e-9
    )


def test_the_plane_agrees_with_an_svd(trained: Any):
    run, _ = trained
    plane = principal_plane([run])
    points = np.stack(
        [
            np.concatenate([v.ravel() for v in run.layout.unflatten(values).values()])
            for values in _stored(run)
        ]
    )
    centred = points - points.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    expected = (u * s)[:, :2]
    signs = np.sign((expected * plane.coordinates).sum(0))
    np.testing.assert_allclose(plane.coordinates, expected * signs, atol=1e-9 * s[0])
    np.testing.assert_allclose(plane.shares, s[:2] ** 2 / (s**2).sum(), rtol=1e-9)


def _stored(run: Run) -> list[Any]:
    whole = slice(0, run.layout.size)
    anchors = [run.stored.anchors.decode(c, whole) for c in range(run.n_windows)]
    starts = [int(start) for start in run.stored.starts]
    [snapshot] = run.stored.document.snapshots.values()
    where = sum(start <= snapshot.step for start in starts)
    anchors.insert(where, run.stored.vector(snapshot.array, whole))
    return [np.asarray(v, float) for v in [*anchors, run.stored.vector("final", whole)]]


def test_losses_on_the_plane_are_those_of_its_points(trained: Any):
    run, setup = trained
    found = losses_on_plane(run, setup, size=3, check_points=4)
    plane = principal_plane([run])
    assert found["loss"].dims == ("second", "first")
    for i, j in ((0, 0), (2, 1)):
        point = plane.point(float(found["first"][i]), float(found["second"][j]))
        parameters = run.layout.unflatten(point.astype(np.float32))
        assert float(found["loss"][j, i]) == pytest.approx(
            loss_at(setup, dict(parameters)), rel=1e-6
        )
    low, high = plane.coordinates.min(0), plane.coordinates.max(0)
    assert (found["first"].values[[0, -1]] - (low[0], high[0])) @ (-1, 1) > 0
    assert (found["second"].values[[0, -1]] - (low[1], high[1])) @ (-1, 1) > 0
    final = loss_at(setup, parameters_at(run, "final"))
    assert float(found["point_loss"][-1]) == pytest.approx(final, rel=1e-6)
    assert int(found["step"][-1]) == run.n_steps
    apart = abs(found["point_loss"] - found["projected_loss"])
    assert found.attrs["projection_error"] == float(apart.max())
    assert 0 < found.attrs["projection_error"] < 0.5


def test_a_path_in_a_plane_has_no_projection_error(tmp_path: Path):
    """Two steps lie in a plane."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(N, 6), torch.randint(3, (N,)))
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    path = tmp_path / "run.zarr"
    with Recorder(path, model, optimizer, reference_every=100) as recorder:
        for indices in torch.arange(16).split(BATCH):
            optimizer.zero_grad()
            inputs, targets = data[indices]
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            if indices[0] == 0:
                recorder.snapshot("between")
    setup = TrainingSetup(model=model, loss=cross_entropy, data=data, batch_size=BATCH)
    found = losses_on_plane(open_run(path), setup, size=2, check_points=9)
    assert found["explained_variance_ratio"].values.sum() == pytest.approx(1)
    assert found.attrs["projection_error"] < 1e-5
    assert np.ptp(found["point_loss"].values) > 0.01


def test_runs_share_a_plane(trained: Any, tmp_path: Path):
    run, setup = trained
    other, _ = record(tmp_path / "other.zarr", seed=1)
    plane = principal_plane([run, other])
    path = analyzers.path_pca([run, other]).compute()
    expected = path["coordinate"].values
    np.testing.assert_allclose(
        plane.coordinates, expected, atol=1e-5 * abs(expected).max()
    )
    found = losses_on_plane(run, setup, size=2, others=[other])
    assert found.attrs["runs"] == [run.location, other.location]
    assert set(found["step"].values.tolist()) <= set(plane.steps.tolist())


def test_given_coordinates_and_progress(trained: Any):
    run, setup = trained
    numbers: list[int] = []

    def track(steps: range) -> Any:
        for step in steps:
            numbers.append(step)
            yield step

    found = losses_on_plane(
        run, setup, first=[0.0, 1.0, 2.0], second=[0.5], check_points=2, track=track
    )
    assert found["loss"].shape == (1, 3)
    assert numbers == list(range(3 + 4))


def test_what_has_no_plane_is_refused(trained: Any, tmp_path: Path):
    run, setup = trained
    with pytest.raises(ValueError, match="`size` must be at least 2, got 1"):
        losses_on_plane(run, setup, size=1)
    wider, _ = record(tmp_path / "wide.zarr", width=6)
    with pytest.raises(ValueError, match="have different layers"):
        losses_on_plane(run, setup, others=[wider])
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "short.zarr", model, optimizer) as recorder:
        recorder.snapshot("only")
    with pytest.raises(ValueError, match="needs three stored iterates"):
        losses_on_plane(open_run(tmp_path / "short.zarr"), setup)
