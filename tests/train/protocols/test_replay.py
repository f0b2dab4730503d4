"""Replayed losses agree with forward passes over the batches that training really used."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, TensorDataset

from tests.train.small_workloads import RecordedLog, narrow, truncate
from tests.trajstore.handmade import change_root_of
from train import cli
from train.data import Splits
from train.loop import train
from train.models.word_language_model import WordLanguageModel
from train.protocols.record import attrs, record, record_resumably
from train.protocols.replay import replay
from train.settings import Training
from train.workloads.catalogue import WORKLOADS
from train.workloads.tasks import LANGUAGE, Task
from trajstore import Recorder, open_run
from trajstore.evaluation.replaying import AUGMENTATION_REDRAWN, BY_BATCH, PER_EXAMPLE

N, BATCH = 50, 16
NAMES = ("digits-mlp", "digits-resnet", "english-transformer")
METHODS = dict(zip(NAMES, (PER_EXAMPLE, BY_BATCH, PER_EXAMPLE), strict=True))
OPTIONS: dict[str, Any] = {"sketch_bits": 64}


@pytest.fixture(scope="module", autouse=True)
def _small_workloads() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch)
        for name in NAMES:
            truncate(patch, name, 14 if name == "english-transformer" else N)
        yield


@pytest.fixture(scope="module")
def mlp_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlp") / "run.zarr"
    record(settings("digits-mlp"), path, **OPTIONS)
    return path


def settings(name: str, **changes: Any) -> Training:
    batch_size = 4 if name == "english-transformer" else BATCH
    short = {"epochs": 2, "batch_size": batch_size, "record_samples": True}
    if name == "digits-mlp":
        short["width"] = 16
    return replace(WORKLOADS[name].settings, **(short | changes))


class Watched:
    """Keeps the model and the batches that a training loop passes to the loss."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.batches: list[tuple[Any, Any]] = []
        workload = WORKLOADS[name]
        self.task = workload.task

        def model(*arguments: Any) -> nn.Module:
            built = workload.model(*arguments)
            built.register_forward_pre_hook(self._keep_inputs)
            return built

        def loss(outputs: Any, targets: Any) -> Any:
            if torch.is_grad_enabled():
                self.batches.append((self._inputs, targets))
            return self.task.loss(outputs, targets)

        watched = replace(workload, model=model, task=Task(loss, self.task.scores))
        monkeypatch.setitem(WORKLOADS, name, watched)

    def _keep_inputs(self, model: nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled():
            self.model, [self._inputs] = model, inputs

    def losses(self, model: nn.Module) -> Any:
        """Return the loss of every kept batch, computed by a forward pass."""
        losses = []
        model.train()
        with torch.no_grad():
            for inputs, targets in self.batches:
                losses.append(float(self.task.loss(model(inputs), targets)))
        return np.array(losses)


@pytest.mark.parametrize("name", NAMES)
def test_losses_equal_a_forward_pass_over_the_recorded_batches(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    watched = Watched(monkeypatch, name)
    model = record(settings(name), tmp_path / "run.zarr", **OPTIONS)
    batches = list(watched.batches)
    run = open_run(tmp_path / "run.zarr")
    found = replay(run)
    # Replaying passes no batch to a backward pass.
    assert len(watched.batches) == len(batches) == run.n_steps == 6
    np.testing.assert_allclose(
        found["reference_loss"], watched.losses(model), rtol=1e-5
    )
    assert found.attrs["method"] == METHODS[name]
    assert found.attrs["reference"] == "final"
    np.testing.assert_array_equal(found["epoch"], [0, 0, 0, 1, 1, 1])
    inputs, targets = WORKLOADS[name].data(settings(name)).train.tensors  # type: ignore[attr-defined]
    size = settings(name).batch_size
    parts = [
        (watched.task.loss(model(x), y).item(), len(x))
        for x, y in zip(inputs.split(size), targets.split(size), strict=True)
    ]
    full = sum(loss * n for loss, n in parts) / len(inputs)
    assert float(found["full_reference_loss"]) == pytest.approx(full, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_at_the_first_iterate_is_the_recorded_one(name: str, tmp_path: Path):
    record(settings(name), tmp_path / "run.zarr", **OPTIONS)
    run = open_run(tmp_path / "run.zarr")
    found = replay(run, reference=0)
    assert float(found["reference_loss"][0]) == pytest.approx(
        float(run.steps["loss"][0]), rel=1e-5
    )
    assert found.attrs["reference"] == "epoch 0"


@pytest.mark.parametrize(
    ("name", "workers"), [*((name, 0) for name in NAMES), ("digits-mlp", 1)]
)
def test_recording_samples_changes_no_bit(name: str, workers: int):
    notes, plain = RecordedLog(), RecordedLog()
    changes = {"num_workers": workers, "epochs": 2}
    one = train(settings(name, **changes), notes)
    stream = torch.get_rng_state()
    other = train(settings(name, record_samples=False, **changes), plain)
    assert torch.equal(stream, torch.get_rng_state())
    for a, b in zip(
        one.state_dict().values(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    assert notes.scalars == plain.scalars
    assert plain.samples == []
    size = settings(name).batch_size
    assert [len(indices) for indices in notes.samples] == [size] * 6
    for epoch in (notes.samples[:3], notes.samples[3:]):
        assert len({index for batch in epoch for index in batch}) == 3 * size


def test_recorded_samples_are_the_samples_of_the_steps(mlp_store: Path):
    notes = RecordedLog()
    train(settings("digits-mlp"), notes)
    np.testing.assert_array_equal(open_run(mlp_store).samples, notes.samples)


def test_resumed_runs_keep_their_samples(tmp_path: Path, mlp_store: Path):
    training = settings("digits-mlp")

    def stop(epochs: range) -> Any:
        for epoch in epochs:
            if epoch == 1:
                raise RuntimeError("stopped")
            yield epoch

    path = tmp_path / "run.zarr"
    every: dict[str, Any] = {"checkpoint_seconds": 0, **OPTIONS}
    with pytest.raises(RuntimeError, match="stopped"):
        record_resumably(training, path, stop, **every)
    record_resumably(training, path, **every)
    assert open_run(path).samples.identical(open_run(mlp_store).samples)


def test_a_full_batch_has_the_loss_of_all_data(tmp_path: Path):
    training = settings("digits-mlp", full_batch=True, record_samples=False)
    model = record(training, tmp_path / "run.zarr", **OPTIONS)
    found = replay(open_run(tmp_path / "run.zarr"))
    inputs, targets = WORKLOADS["digits-mlp"].data(training).train.tensors  # type: ignore[attr-defined]
    expected = cross_entropy(model(inputs), targets).item()
    np.testing.assert_allclose(found["reference_loss"], [expected] * 2, rtol=1e-5)
    assert found.attrs["method"].startswith("all data")
    # Requesting indices is harmless in a full-batch run, which has none.
    asked = replace(training, record_samples=True)
    record(asked, tmp_path / "asked.zarr", **OPTIONS)
    assert open_run(tmp_path / "asked.zarr").spec.samples == 0


def test_losses_that_are_not_means_are_replayed_by_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    watched = Watched(monkeypatch, "alm")
    training = replace(
        WORKLOADS["alm"].settings, max_steps=20, batch_size=8, record_samples=True
    )
    model = record(training, tmp_path / "run.zarr", **OPTIONS)
    found = replay(open_run(tmp_path / "run.zarr"))
    assert found.attrs["method"] == BY_BATCH
    np.testing.assert_allclose(
        found["reference_loss"], watched.losses(model), rtol=1e-5
    )


def test_examples_that_attend_to_each_other_are_replayed_by_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = "english-transformer"
    workload = WORKLOADS[name]

    def build(*_: Any) -> nn.Module:
        return WordLanguageModel(
            128, dim=8, n_hidden=8, n_layers=1, n_heads=2, over_batch=True
        )

    monkeypatch.setitem(WORKLOADS, name, replace(workload, model=build, task=LANGUAGE))
    watched = Watched(monkeypatch, name)
    model = record(settings(name), tmp_path / "run.zarr", **OPTIONS)
    found = replay(open_run(tmp_path / "run.zarr"))
    assert found.attrs["method"] == BY_BATCH
    np.testing.assert_allclose(
        found["reference_loss"], watched.losses(model), rtol=1e-5
    )


def change(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    monkeypatch.setitem(WORKLOADS, name, replace(WORKLOADS[name], **changes))


def test_dropout_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def build(*_: Any) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

    change(monkeypatch, "digits-mlp", model=build)
    watched = Watched(monkeypatch, "digits-mlp")
    model = record(settings("digits-mlp"), tmp_path / "run.zarr", **OPTIONS)
    found = replay(open_run(tmp_path / "run.zarr"))
    model.eval()
    with torch.no_grad():
        expected = [float(cross_entropy(model(x), y)) for x, y in watched.batches]
    np.testing.assert_allclose(found["reference_loss"], expected, rtol=1e-5)


class Shifted(Dataset[Any]):
    """A data set that adds new noise to an example at every access."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        inputs, target = self.data[index]
        return inputs + 0.01 * torch.randn(()), target


def test_augmentation_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = WORKLOADS["digits-mlp"].data

    def shifted(training: Training) -> Splits:
        splits = data(training)
        return splits._replace(train=Shifted(splits.train))

    change(monkeypatch, "digits-mlp", data=shifted)
    model = record(settings("digits-mlp"), tmp_path / "run.zarr", **OPTIONS)
    stream = torch.get_rng_state()
    run = open_run(tmp_path / "run.zarr")
    found = replay(run)
    assert torch.equal(stream, torch.get_rng_state())
    assert found.attrs["method"] == f"{BY_BATCH}; {AUGMENTATION_REDRAWN}"
    images, labels = data(settings("digits-mlp")).train.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        near = [
            float(cross_entropy(model(images[i]), labels[i]))
            for i in run.samples.values
        ]
    np.testing.assert_allclose(found["reference_loss"], near, rtol=0.02)
    assert not np.allclose(found["reference_loss"], near, rtol=1e-5)
    xr.testing.assert_identical(found, replay(run))


@contextmanager
def forgetful(path: Path, model: Any, optimizer: Any, **options: Any) -> Iterator[Any]:
    """Record no indices in step 2, and five indices in step 3."""
    with Recorder(path, model, optimizer, **options) as recorder:
        log_samples, steps = recorder.log_samples, count()

        def some_samples(indices: Any) -> None:
            step = next(steps)
            if step != 2:
                log_samples(indices[: 5 if step == 3 else None])

        yield SimpleNamespace(log=recorder.log, log_samples=some_samples)


def test_steps_without_indices_have_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = settings("digits-mlp")

    path = tmp_path / "run.zarr"
    options = OPTIONS | {"attrs": attrs(training), "samples": BATCH}
    model = train(training, partial(forgetful, path, **options))
    run = open_run(path)
    found = replay(run)["reference_loss"].values
    assert np.isnan(found[2])
    assert np.isfinite(np.delete(found, 2)).all()
    images, labels = WORKLOADS["digits-mlp"].data(training).train.tensors  # type: ignore[attr-defined]
    some = run.samples.values[3, :5]
    expected = cross_entropy(model(images[some]), labels[some]).item()
    assert found[3] == pytest.approx(expected, rel=1e-5)
    # Replaying by batch gives the same losses.
    monkeypatch.setattr("trajstore.evaluation.replaying._is_mean", lambda *_: False)
    again = replay(run)["reference_loss"].values
    np.testing.assert_allclose(again, found, rtol=1e-5)


def test_random_labels_are_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    watched = Watched(monkeypatch, "digits-mlp")
    training = settings("digits-mlp", control="random-labels")
    model = record(training, tmp_path / "run.zarr", **OPTIONS)
    found = replay(open_run(tmp_path / "run.zarr"))
    np.testing.assert_allclose(
        found["reference_loss"], watched.losses(model), rtol=1e-5
    )


def recorded(path: Path, **changes: Any) -> Path:
    record(settings("digits-mlp", **changes), path, **OPTIONS)
    return path


def test_runs_without_indices_say_how_to_record_them(tmp_path: Path):
    run = open_run(recorded(tmp_path / "run.zarr", record_samples=False))
    with pytest.raises(
        ValueError, match=r"record with traj-train run digits-mlp --record-samples\.$"
    ):
        replay(run)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda attributes: attributes["attrs"].clear(),
        lambda attributes: attributes["attrs"].update(training="mine"),
        lambda attributes: attributes["attrs"]["training"].update(workload="mine"),
        lambda attributes: attributes["attrs"]["training"].update(colour=1),
    ],
    ids=["nothing", "text", "workload", "setting"],
)
def test_runs_of_other_loops_are_refused(
    tmp_path: Path, mlp_store: Path, spoil: Callable[[dict[str, Any]], object]
):
    path = tmp_path / "run.zarr"
    shutil.copytree(mlp_store, path)
    change_root_of(path, lambda attributes, _: spoil(attributes))
    with pytest.raises(
        ValueError,
        match=r"does not say how it was .*alpha_beta\(run, reference_losses=",
    ):
        replay(open_run(path))


def test_other_data_are_refused(mlp_store: Path, monkeypatch: pytest.MonkeyPatch):
    run = open_run(mlp_store)
    data = WORKLOADS["digits-mlp"].data

    def bright(training: Training) -> Splits:
        splits = data(training)
        images, labels = splits.train.tensors  # type: ignore[attr-defined]
        return splits._replace(train=TensorDataset(2 * images, labels))

    change(monkeypatch, "digits-mlp", data=bright)
    with pytest.raises(
        ValueError, match=r"model, loss and data differ.*was recorded.*data-dir"
    ):
        replay(run)

    truncate(monkeypatch, "digits-mlp", 10)
    with pytest.raises(
        ValueError, match=r"trained on example \d+, but the data have only 10"
    ):
        replay(run)


def traj_train(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["traj-train", *map(str, arguments)])
    cli.main()


def test_the_command_writes_next_to_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "run.zarr"
    traj_train(
        monkeypatch,
        *("run", "digits-mlp", "--out", path, "--epochs", 1, "--batch-size", BATCH),
        *("--width", 16, "--record-samples", "--sketch-bits", 64),
    )
    capsys.readouterr()
    traj_train(monkeypatch, "replay", path)
    traj_train(monkeypatch, "replay", path, "--reference", "0")
    printed = capsys.readouterr().out
    assert "losses of 3 of 3 batches at final: per-sample losses, averaged." in printed
    assert "Next: traj-analyze alpha-beta" in printed
    for group, reference in (("replay-final", "final"), ("replay-epoch-0", 0)):
        stored = xr.open_zarr(
            tmp_path / "run.analysis.zarr", group=group, consolidated=False, chunks=None
        )
        expected = replay(open_run(path), reference=reference)
        np.testing.assert_array_equal(
            stored["reference_loss"], expected["reference_loss"]
        )
        assert set(stored.attrs.pop("checks")) == {
            "reference_loss",
            "full_reference_loss",
        }
        assert stored.attrs == expected.attrs


def test_errors_of_the_command_are_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = recorded(tmp_path / "run.zarr", record_samples=False)
    with pytest.raises(SystemExit, match="1"):
        traj_train(monkeypatch, "replay", path)
    printed = capsys.readouterr().err.replace("\n", " ")
    assert printed.startswith("traj-train: The indices of examples are not recorded")
    assert not (tmp_path / "run.analysis.zarr").exists()
    shutil.rmtree(path)
