"""Test ``analyzers.conditions.commands`` from training to figures."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

import analyzers
from analyzers.conditions import commands
from analyzers.geometry.losses import gradient_name, replayed
from tests.analyzers.stored_results import stored
from trajstore import open_run

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from train.protocols.record import record
from train.protocols.replay import replay
from train.workloads.catalogue import WORKLOADS
from trajstore import Recorder
from trajstore.reading.results import replay_group, write_results
from trajstore.reading.target import find_target

Command = Callable[..., str]


def train(path: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "epochs": 2,
        "max_steps": 100,
        "batch_size": 16,
        "lr": 0.3,
        "record_samples": True,
        "full_gradients": True,
    }
    training = replace(WORKLOADS["digits-mlp"].settings, **(settings | changes))
    record(training, path, sketch_bits=1024, probes=256)
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return runs of two seeds, replayed at their final iterates; tests must not change them."""
    directory = tmp_path_factory.mktemp("conditions")
    paths = [train(directory / f"seed-{s}.zarr", seed=s) for s in (0, 1)]
    for path in paths:
        run = open_run(path)
        write_results(run, replay_group(find_target(run, "final")), replay(run))
    return paths


def rows(output: str, header: str, n: int) -> list[list[str]]:
    """Return the cells of the first n rows below the header of a table."""
    lines = output.splitlines()
    first = next(i for i, line in enumerate(lines) if line.split()[:1] == [header])
    table = lines[first : first + 1 + n]
    assert max(map(len, table)) <= 80
    return [line.split() for line in table[1:]]


def test_pairs_of_several_runs(stores: list[Path], traj_analyze: Command):
    output = traj_analyze("alpha-beta", *stores)
    runs = [open_run(path) for path in stores]
    compared = [analyzers.alpha_beta(run).compute() for run in runs]
    found = [stored(path, "alpha-beta-final") for path in stores]
    for results, one in zip(found, compared, strict=True):
        for name in ("product", "product_stderr", "loss", "reference_loss"):
            # float32 matrix products may be summed in another order.
            np.testing.assert_allclose(results[name], one[name], rtol=1e-5, atol=1e-6)
        assert results.attrs["reference_losses"] == "per-sample losses, averaged"
    pairs = analyzers.feasible_set(found)
    xr.testing.assert_equal(stored(stores[0], "feasible-final"), pairs)
    assert "holds at all 200 steps of 2 runs" in output
    smallest = pairs.isel(vertex=np.flatnonzero(pairs["is_smallest"]))
    table = rows(output, "alpha", smallest.sizes["vertex"])
    printed = [[float(cell) for cell in row[:2]] for row in table]
    np.testing.assert_allclose(
        printed, np.stack([smallest["alpha"], smallest["beta"]], 1), rtol=1e-3
    )
    for n, row in zip((-1, 0, 1), rows(output, "products", 3), strict=True):
        shifted = analyzers.feasible_set(found, n_stderr=n)
        best = [float(shifted[name]) for name in ("best_alpha", "best_beta")]
        if not np.isnan(analyzers.largest_alpha(pairs)):
            best.append(analyzers.largest_alpha(shifted))
        found_row = [float(cell) for cell in row[-len(best) :]]
        np.testing.assert_allclose(found_row, best, rtol=1e-3)
    figure = stores[0].with_suffix(".figures") / "alpha-beta-final.png"
    assert figure.stat().st_size > 10_000


def test_an_empty_set_is_reported_and_drawn(
    stores: list[Path], traj_analyze: Command, tmp_path: Path
):
    path = tmp_path / "run.zarr"
    shutil.copytree(stores[0], path)
    run = open_run(path)
    # With r = f* = 0, T = a - (alpha - beta) l, and no product is 1000 times the loss.
    impossible = replay(run)
    impossible["reference_loss"][7] = 0
    write_results(run, "replay-final", impossible)
    output = traj_analyze("alpha-beta", path, "--min-gap", 1000)
    assert "At 100 steps of 1 run no pair is feasible" in output
    assert "step 7 of" in output
    assert stored(path, "feasible-final").sizes == {"vertex": 0}
    assert (tmp_path / "run.figures/alpha-beta-final.png").stat().st_size > 5_000


def test_aiming_of_all_data_and_of_minibatches(
    stores: list[Path], traj_analyze: Command
):
    run = open_run(stores[0])
    output = traj_analyze("aiming", stores[0], "--measurement", "full_batch")
    full = analyzers.aiming(run, measurement="full_batch").compute()
    xr.testing.assert_allclose(
        stored(stores[0], "aiming-final-of-full_batch"),
        full.drop_indexes(["epoch", "iteration"]),
    )
    assert "minibatches" not in output
    for epoch, row in enumerate(rows(output, "epoch", 2)):
        one = full.sel(epoch=epoch)
        expected = [
            one["loss"],
            one["angle"],
            one["cosine"],
            one["cosine"],
            one["theta"],
        ]
        printed = [float(cell.rstrip("°")) for cell in row[1:6]]
        np.testing.assert_allclose(printed, np.ravel(expected), rtol=5e-3, atol=5e-4)
    output = traj_analyze("aiming", stores[0])
    assert "record with traj-train run NAME --full-gradients" in output
    of_steps = analyzers.aiming(run).compute()
    for epoch, row in enumerate(rows(output, "epoch", 2)):
        theta = of_steps["theta"].sel(epoch=epoch)
        assert float(row[5]) == pytest.approx(float(theta.mean()), rel=1e-3)
        assert float(row[7]) == pytest.approx(float(theta.min()), rel=5e-3)
    figures = stores[0].with_suffix(".figures")
    for name in ("aiming-final", "aiming-final-of-full_batch"):
        assert (figures / f"{name}.png").stat().st_size > 10_000


def test_pl_of_all_data(stores: list[Path], traj_analyze: Command):
    output = traj_analyze(
        "polyak-lojasiewicz", stores[0], "--measurement", "full_batch"
    )
    run = open_run(stores[0])
    least = float(replayed(run)["full_reference_loss"])
    found = analyzers.polyak_lojasiewicz(
        run, reference_loss=least, measurement="full_batch"
    )
    printed = [[float(cell) for cell in row] for row in rows(output, "delta", 5)]
    expected = np.stack([found["delta"], found["smallest"], found["smallest_step"]], 1)
    np.testing.assert_allclose(printed, expected, rtol=1e-3)
    assert f"f* = {least:.6g}, the loss at x*. Mu is exact up to rounding if" in output
    xr.testing.assert_equal(
        stored(stores[0], "pl-of-full_batch"),
        found.drop_indexes(["epoch", "iteration"]),
    )
    output = traj_analyze("polyak-lojasiewicz", stores[0], "--reference-loss", 0.5)
    assert "steps do not bound mu" in output
    assert "f* = 0.5. Mu is exact up to rounding if f* is the infimum of f;" in output
    assert "a lower bound if f* is below it" in " ".join(output.split())


def test_missing_losses_at_another_target_are_named(
    stores: list[Path], refused: Callable[..., str]
):
    text = refused("alpha-beta", stores[0], "--reference", 0)
    assert f"compute them with traj-train replay {stores[0]} --reference 0, or" in text


def test_losses_of_another_state_are_refused(
    stores: list[Path], refused: Callable[..., str], tmp_path: Path
):
    path = tmp_path / "run.zarr"
    shutil.copytree(stores[0], path)
    other = replay(open_run(stores[1]))
    write_results(open_run(path), "replay-final", other)
    text = refused("alpha-beta", path)
    assert "belong to another state of the run, or to another x*; compute" in text
    assert f"compute them with traj-train replay {path}, or give an array" in text


def test_errors_name_the_command_that_makes_missing_results(
    example_run: Path, refused: Callable[..., str], tmp_path: Path
):
    path = tmp_path / "run.zarr"
    shutil.copytree(example_run, path)
    text = refused("alpha-beta", path)
    assert "; give an array as reference_losses (on the command line" in text
    assert (
        f"(for a run of traj-train, compute them with traj-train replay {path})."
        in text
    )
    text = refused("polyak-lojasiewicz", path)
    assert "; give --reference-loss (for a run of traj-train, compute" in text
    text = refused("aiming", path, "--measurement", "full_batch")
    assert "recorded by traj-train run NAME --full-gradients" in text


def test_one_loss_at_the_target_serves_runs_that_use_all_data(
    stores: list[Path], refused: Command
):
    told = refused("alpha-beta", stores[0], "--reference-loss", "0.1")
    assert (
        "does not say that its steps use all data. If they do, give --full-batch"
        in told
    )
    attrs = {"full_batch": True}
    run = SimpleNamespace(attrs=attrs, location="a.zarr", n_steps=3)
    losses = commands._reference_losses(run, 0.25)  # type: ignore[arg-type]
    np.testing.assert_array_equal(losses, [0.25] * 3)
    assert commands._reference_losses(run, None) is None  # type: ignore[arg-type]
    unsaid = SimpleNamespace(attrs={}, location="a.zarr", n_steps=3)
    losses = commands._reference_losses(unsaid, 0.25, full_batch=True)  # type: ignore[arg-type]
    np.testing.assert_array_equal(losses, [0.25] * 3)


def test_full_batches_may_be_declared_after_recording(
    tmp_path: Path, traj_analyze: Command
):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    inputs = torch.randn(40, 4)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = tmp_path / "run.zarr"

    def loss_of() -> Any:
        return (model(inputs) - inputs[:, :1] - inputs[:, 1:2]).square().mean()

    with Recorder(path, model, optimizer, total_steps=30, exact=True) as recorder:
        for _ in range(30):
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
    last = ("--full-batch", "--reference-loss", repr(loss_of().item()))
    printed = " ".join(traj_analyze("alpha-beta", path, *last).split())
    assert "is feasible: report the largest alpha at beta = 0" in printed
    # Least squares is convex: the condition holds with alpha = 1 and beta = 0.
    largest = analyzers.largest_alpha(stored(path, "feasible-final"))
    assert largest > 1
    assert f"as estimated 0.1 0 {largest:.4g}" in printed
    assert "minibatches" not in traj_analyze("polyak-lojasiewicz", path, *last)
    assert "minibatches" not in traj_analyze("aiming", path, "--full-batch")
    assert "--full-batch" in traj_analyze("aiming", path)
    said = stored(path, "aiming-final").attrs["gradient"]
    assert said == "minibatch"


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({}, "minibatch"),
        ({"full_batch": True}, "full batch"),
        ({"training": {"full_batch": True}}, "full batch"),
        ({"training": {"full_batch": False}}, "minibatch"),
        ({"training": "text", "full_batch": "yes"}, "minibatch"),
    ],
)
def test_attrs_say_whether_steps_use_all_data(attrs: dict[str, Any], expected: str):
    group = SimpleNamespace(is_measurement=False)
    run = SimpleNamespace(attrs=attrs, group=group)
    assert gradient_name(run) == expected  # type: ignore[arg-type]
