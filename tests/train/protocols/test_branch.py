"""Branches repeat the steps of their parent with a scaled learning rate."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from analyzers.no_wrong_turns.runs import find_runs
from tests.train.small_workloads import narrow, truncate
from train import cli
from train.protocols.branch import branch, branch_path, branch_training
from train.protocols.record import branch_checkpoint_path, record
from train.settings import Training
from train.workloads.catalogue import WORKLOADS
from trajstore.reading.run import Run, open_run

SMALL: dict[str, Any] = {"exact": True}
PER_EPOCH = 3


@pytest.fixture(scope="module", autouse=True)
def _small_workloads() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch)
        for name in ("digits-mlp", "digits-resnet", "english-transformer"):
            truncate(patch, name, 14 if name == "english-transformer" else 50)
        yield


def settings(name: str, **changes: Any) -> Training:
    short: dict[str, Any] = {
        "epochs": 4,
        "batch_size": 4 if name == "english-transformer" else 16,
    }
    if name == "digits-mlp":
        short["width"] = 16
    return replace(WORKLOADS[name].settings, **(short | changes))


def parent_of(
    directory: Path, training: Training, branch_at: Sequence[int] = (2,)
) -> Run:
    record(training, directory / "run.zarr", branch_at=branch_at, **SMALL)
    return open_run(directory / "run.zarr")


@pytest.fixture(scope="module")
def mlp_parent(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return parent_of(tmp_path_factory.mktemp("mlp"), settings("digits-mlp"))


@pytest.fixture(scope="module")
def cosine_parent(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Record a model with buffers and a schedule."""
    training = settings("digits-resnet", schedule="cosine")
    return parent_of(tmp_path_factory.mktemp("cosine"), training)


def final(run: Run) -> Any:
    return run.stored.vector("final", slice(0, run.layout.size))


def iterates(run: Run) -> Any:
    whole = slice(0, run.layout.size)
    references = np.stack(
        [
            run.stored.anchors.decode(int(c), whole)
            for c in run.stored.array("window")[:]
        ]
    )
    return references.astype(float) + run.stored.array("displacement")[:]


@pytest.mark.parametrize(
    "training",
    [
        settings("digits-resnet", schedule="cosine", warmup_epochs=1),
        settings("digits-resnet", optimizer="adam", lr=0.002, max_steps=11),
        settings("digits-mlp", full_batch=True),
        settings("digits-mlp", control="noise-gradients", measure_every=2),
        settings("english-transformer"),
    ],
    ids=["momentum", "adam", "full batch", "noise", "transformer"],
)
def test_a_branch_of_scale_one_is_its_parent_bit_for_bit(
    tmp_path: Path, training: Training
):
    parent = parent_of(tmp_path, training)
    first = 2 if training.full_batch else 2 * PER_EPOCH
    branch(parent, 2, 1.0, tmp_path / "branch.zarr")
    again = open_run(tmp_path / "branch.zarr")
    assert again.n_steps == parent.n_steps - first
    np.testing.assert_array_equal(final(again), final(parent))
    np.testing.assert_array_equal(
        again.stored.array("gradient")[:], parent.stored.array("gradient")[first:]
    )
    logged = [name for name in parent.metrics if name != "wall_time"]
    for name in logged:
        expected = parent.steps[name].values[first:]
        # The anchors of a branch differ from its parent's, so distances differ by rounding.
        np.testing.assert_allclose(again.steps[name], expected, rtol=1e-6, err_msg=name)
    assert again.attrs["branch"] == {
        "parent": "run.zarr",
        "parent_created": parent.stored.document.created,
        "epoch": 2,
        "step": first,
        "lr_scale": 1.0,
        "start": "a checkpoint",
    }


def test_a_smaller_scale_goes_less_far_with_the_same_data(
    tmp_path: Path, cosine_parent: Run
):
    parent = cosine_parent
    branch(parent, 2, 0.01, tmp_path / "branch.zarr")
    small = open_run(tmp_path / "branch.zarr")
    rates = parent.steps.lr.values[2 * PER_EPOCH :]
    np.testing.assert_allclose(small.steps.lr, 0.01 * rates, rtol=1e-12)
    # The first gradient is the same; the second differs, because the step is a 100th as long.
    gradients = parent.stored.array("gradient")[2 * PER_EPOCH :]
    np.testing.assert_array_equal(small.stored.array("gradient")[0], gradients[0])
    steps = small.steps.update_norm.values
    assert steps[0] == pytest.approx(
        0.01 * float(parent.steps.update_norm[2 * PER_EPOCH]), rel=1e-3
    )


def test_a_run_keeps_snapshots_and_checkpoints_of_the_given_epochs(
    tmp_path: Path, mlp_parent: Run
):
    training = settings("digits-mlp")
    parent = parent_of(tmp_path, training, branch_at=(1, 3))
    assert parent.snapshots == ("epoch-1", "epoch-3")
    for epoch in (1, 3):
        assert branch_checkpoint_path(tmp_path / "run.zarr", epoch).exists()
        array = parent.stored.document.snapshots[f"epoch-{epoch}"].array
        np.testing.assert_allclose(
            parent.stored.vector(array, slice(0, parent.layout.size)),
            iterates(parent)[epoch * PER_EPOCH],
            atol=1e-7,
        )
    # Neither snapshots nor checkpoints change the run.
    np.testing.assert_array_equal(final(mlp_parent), final(parent))


@pytest.mark.parametrize("has_snapshot", [True, False], ids=["snapshot", "reference"])
def test_without_a_checkpoint_the_store_is_enough_for_models_without_buffers(
    tmp_path: Path, has_snapshot: bool
):
    parent = parent_of(tmp_path, settings("digits-mlp"), (2,) if has_snapshot else ())
    branch_checkpoint_path(tmp_path / "run.zarr", 2).unlink(missing_ok=True)
    branch(parent, 2, 0.5, tmp_path / "branch.zarr")
    found = open_run(tmp_path / "branch.zarr")
    start = found.attrs["branch"]["start"]
    assert ("snapshot 'epoch-2'" if has_snapshot else "8-bit") in start
    assert "a new optimizer, and the data in the order of epoch 0" in start
    tolerance = 1e-7 if has_snapshot else 1e-2
    np.testing.assert_allclose(
        iterates(found)[0], iterates(parent)[2 * PER_EPOCH], atol=tolerance
    )


def test_epoch_zero_needs_no_checkpoint(tmp_path: Path, mlp_parent: Run):
    branch(mlp_parent, 0, 1.0, tmp_path / "branch.zarr", epochs=2)
    again = open_run(tmp_path / "branch.zarr")
    gradients = mlp_parent.stored.array("gradient")[: 2 * PER_EPOCH]
    np.testing.assert_array_equal(again.stored.array("gradient")[:], gradients)


def test_branches_have_the_given_number_of_epochs(tmp_path: Path, mlp_parent: Run):
    branch(mlp_parent, 2, 0.1, tmp_path / "branch.zarr", epochs=5)
    found = open_run(tmp_path / "branch.zarr")
    assert (found.n_steps, found.n_epochs) == (5 * PER_EPOCH, 5)
    assert found.spec.total_steps == 5 * PER_EPOCH
    assert found.attrs["training"]["epochs"] == 7
    assert found.attrs["training"]["lr"] == pytest.approx(0.1 * 0.05)


def test_branches_record_samples_as_their_parent_does(tmp_path: Path):
    parent = parent_of(tmp_path, settings("digits-mlp", record_samples=True))
    branch(parent, 2, 1.0, tmp_path / "branch.zarr")
    found = open_run(tmp_path / "branch.zarr")
    np.testing.assert_array_equal(found.samples, parent.samples[2 * PER_EPOCH :])


def test_branches_are_not_listed_as_runs(mlp_parent: Run):
    path = branch_path(mlp_parent, 2, 0.1, None)
    branch(mlp_parent, 2, 0.1, path)
    directory = Path(mlp_parent.location).parent
    assert path == directory / "run.branches" / "epoch-2-lr-0.1.zarr"
    assert [found.run.location for found in find_runs(directory)] == [
        mlp_parent.location
    ]


def test_impossible_branches_are_refused(tmp_path: Path, cosine_parent: Run):
    parent, out = cosine_parent, tmp_path / "branch.zarr"
    with pytest.raises(ValueError, match=r"lr_scale: .* positive number, got 0\.0"):
        branch(parent, 2, 0.0, out)
    with pytest.raises(
        KeyError, match=r"no epoch 9 in .*have 4 epochs\. .* epochs \[2\]"
    ):
        branch(parent, 9, 0.1, out)
    with pytest.raises(ValueError, match=r"buffers, such as .* --branch-at EPOCH"):
        branch(parent, 3, 0.1, out)
    with pytest.raises(ValueError, match=r"'cosine' schedule .* choose at most 2"):
        branch(parent, 2, 0.1, out, epochs=3)
    with pytest.raises(ValueError, match="epochs: expected at least 1, got 0"):
        branch(parent, 2, 0.1, out, epochs=0)
    assert not out.exists()
    branch(parent, 2, 0.1, out)
    with pytest.raises(ValueError, match=r"is itself a branch of run\.zarr"):
        branch_training(open_run(out), 1, 0.1)
    with pytest.raises(FileExistsError, match="exists already"):
        branch(parent, 2, 0.1, out)


def test_epochs_without_checkpoint_or_window_are_refused(tmp_path: Path):
    record(settings("digits-mlp"), tmp_path / "run.zarr", reference_every=7, **SMALL)
    parent = open_run(tmp_path / "run.zarr")
    with pytest.raises(KeyError, match=r"no checkpoint of epoch 1 .* the epochs \[\],"):
        branch(parent, 1, 0.1, tmp_path / "branch.zarr")


def test_checkpoints_of_another_run_are_refused(tmp_path: Path, mlp_parent: Run):
    path = branch_checkpoint_path(tmp_path / "run.zarr", 2)
    path.parent.mkdir()
    shutil.copy(branch_checkpoint_path(Path(mlp_parent.location), 2), path)
    record(settings("digits-mlp"), tmp_path / "run.zarr", **SMALL)
    with pytest.raises(ValueError, match="belongs to another run"):
        branch(open_run(tmp_path / "run.zarr"), 2, 0.1, tmp_path / "branch.zarr")


def test_runs_that_do_not_say_how_they_were_trained_are_refused(example_run: Path):
    with pytest.raises(ValueError, match="does not say how it was trained"):
        branch_training(open_run(example_run), 1, 0.1)


def test_epochs_outside_the_run_are_refused(tmp_path: Path):
    training = settings("digits-mlp", max_steps=4)
    for epochs in ([0], [2, 4]):
        with pytest.raises(ValueError, match="branch_at: expected epochs from 1 to 3"):
            record(training, tmp_path / "run.zarr", branch_at=epochs, **SMALL)
    assert not (tmp_path / "run.zarr").exists()
    with pytest.warns(UserWarning, match=r"ended before the epochs \[3\]"):
        record(training, tmp_path / "run.zarr", branch_at=[1, 3], **SMALL)


def test_the_command_records_a_store_for_every_scale(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def traj_train(*arguments: object) -> None:
        monkeypatch.setattr("sys.argv", ["traj-train", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "500")
        cli.main()

    out = tmp_path / "run.zarr"
    short = ["--epochs", 3, "--batch-size", 16, "--width", 16, "--sketch-bits", 64]
    traj_train("run", "digits-mlp", *short, "--out", out, "--branch-at", 1, 2)
    given = ["--at-epoch", 1, "--lr-scale", "0.1", "0.01", "--epochs", 1]
    traj_train("branch", out, *given)
    stores = [tmp_path / f"run.branches/epoch-1-lr-{s}.zarr" for s in ("0.1", "0.01")]
    for path in stores:
        run = open_run(path)
        assert (run.n_steps, run.status, run.spec.sketch_bits) == (3, "complete", 64)
    printed = capsys.readouterr().out
    assert f"traj-analyze compare-branches {out} {stores[0]} {stores[1]}" in printed
    traj_train("branch", out, *given, "--out", tmp_path / "other")
    assert (tmp_path / "other" / "epoch-1-lr-0.1.zarr").exists()
    for wrong, message in {
        ("--lr-scale", "0.1"): "exists already",
        ("--lr-scale", "0.5", "0.5"): "requested twice",
        ("--lr-scale", "0.5", "0"): "expected a positive number, got 0.0",
    }.items():
        with pytest.raises(SystemExit, match=r"^1$"):
            traj_train("branch", out, "--at-epoch", 1, *wrong)
        error = capsys.readouterr().err
        assert error.startswith("traj-train: ")
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run.branches" / "epoch-1-lr-0.5.zarr").exists()
