"""Recording never ends a training run that would have continued without it."""

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
lightning = pytest.importorskip("lightning.pytorch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tests.trajstore.integrations import test_lightning, test_transformers
from tests.trajstore.integrations.by_hand import (
    EPOCHS,
    N_BATCHES,
    SMALL,
    final,
    flat,
    make_data,
    make_loader,
)
from tests.trajstore.integrations.test_accelerate import train
from trajstore.integrations.attempts import attempt_of, numbered
from trajstore.integrations.lightning import TrajectoryCallback as LightningCallback
from trajstore.integrations.transformers import STATE_FILE, TrajectoryCallback
from trajstore.reading.run import open_run
from trajstore.recording.recorder import Recorder
from trajstore.store.writer import Writer

pytestmark = [
    *test_lightning.pytestmark,
    pytest.mark.filterwarnings("ignore:.*dataloader is not resumable"),
]


class Lengthening(test_lightning.Module):
    """Epochs of 2, 4 and 6 batches; the trainer loads the data again for each."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[int] = []

    def train_dataloader(self) -> Any:
        n = 4 * (1 + self.current_epoch)
        return torch.utils.data.DataLoader(
            torch.utils.data.Subset(make_data(), range(n)), batch_size=2
        )

    def training_step(self, batch: Any, index: int) -> Any:
        self.epochs.append(self.current_epoch)
        return super().training_step(batch, index)


def test_epochs_of_any_length_are_lightnings(tmp_path: Path):
    module = Lengthening()
    test_lightning.make_trainer(
        LightningCallback(tmp_path / "run", **SMALL),
        reload_dataloaders_every_n_epochs=1,
    ).fit(module)
    assert np.bincount(module.epochs).tolist() == [2, 4, 6]
    np.testing.assert_array_equal(open_run(tmp_path / "run").steps.epoch, module.epochs)


def test_an_epoch_that_lightning_ends_early_is_short(tmp_path: Path):
    class Early(test_lightning.Module):
        def on_train_batch_start(self, _batch: Any, index: int) -> int | None:
            return -1 if index == 3 + self.current_epoch else None

    test_lightning.make_trainer(LightningCallback(tmp_path / "run", **SMALL)).fit(
        Early(), make_loader()
    )
    epochs = open_run(tmp_path / "run").steps.epoch.values
    assert np.bincount(epochs).tolist() == [3, 4, 5]


def test_epochs_that_transformers_ends_early_are_short(tmp_path: Path):
    class Early(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(
            self, _args: Any, state: Any, control: Any, **_kwargs: Any
        ) -> None:
            control.should_epoch_stop = state.global_step in {3, 8}

    callback = TrajectoryCallback(tmp_path / "run", **SMALL)
    test_transformers.make_trainer(
        tmp_path, test_transformers.Regression(), callback, Early()
    ).train()
    epochs = open_run(tmp_path / "run").steps.epoch.values
    assert np.bincount(epochs).tolist() == [3, 5, N_BATCHES]


def test_manual_optimization_has_a_length(tmp_path: Path):
    callback = LightningCallback(tmp_path / "run", optimizer=0, **SMALL)
    test_lightning.make_trainer(callback).fit(test_lightning.Pair(), make_loader())
    spec = open_run(tmp_path / "run").spec
    # Epochs of few steps share windows, so `reference_every` is not given.
    assert (spec.total_steps, spec.reference_every) == (EPOCHS * N_BATCHES, None)


def out_of_memory(limit: int) -> type[Any]:
    class Limited(test_transformers.Regression):
        def forward(self, inputs: Any, targets: Any) -> Any:
            if len(inputs) > limit:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. By the test")
            return super().forward(inputs, targets)

    return Limited


@pytest.mark.slow
def test_a_trainer_that_begins_again_is_recorded_again(tmp_path: Path):
    """The trainer halves the batch until it fits into memory."""
    ends = []
    for callbacks in ([], [TrajectoryCallback(tmp_path / "run.zarr", **SMALL)]):
        model = out_of_memory(1)()
        trainer = test_transformers.make_trainer(
            tmp_path, model, *callbacks, auto_find_batch_size=True
        )
        trainer.train()
        ends.append(flat(model.parameters()))
    np.testing.assert_array_equal(ends[0], ends[1])
    assert open_run(tmp_path / "run.zarr").n_steps == 0
    again = open_run(tmp_path / "run-2.zarr")
    assert again.n_steps == trainer.state.global_step == EPOCHS * 2 * N_BATCHES
    np.testing.assert_array_equal(final(again), ends[1])


def test_lightning_may_begin_again(tmp_path: Path):
    class Failing(test_lightning.Module):
        def on_train_batch_start(self, _batch: Any, index: int) -> None:
            if index == 5:
                raise RuntimeError("No more.")

    callback = LightningCallback(tmp_path / "run.zarr", **SMALL)
    with pytest.raises(RuntimeError, match=r"No more\."):
        test_lightning.make_trainer(callback).fit(Failing(), make_loader())
    trainer = test_lightning.make_trainer(callback, max_epochs=1)
    trainer.fit(test_lightning.Module(), make_loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    runs = [open_run(tmp_path / name) for name in ("run.zarr", "run-2.zarr")]
    assert [run.status for run in runs] == ["failed", "complete"]
    # A new process finds the attempt that the checkpoint belongs to.
    callback = LightningCallback(tmp_path / "run.zarr", **SMALL)
    test_lightning.make_trainer(callback).fit(
        test_lightning.Module(), make_loader(), ckpt_path=tmp_path / "last.ckpt"
    )
    assert open_run(tmp_path / "run.zarr").n_steps == 5
    assert open_run(tmp_path / "run-2.zarr").n_steps == EPOCHS * N_BATCHES


def test_accelerate_may_begin_again(tmp_path: Path):
    """The second attempt is trained, and not recorded, because the store exists."""
    accelerate = pytest.importorskip("accelerate")

    def fit(path: Path | None) -> Any:
        ends: list[Any] = []

        def attempt(batch_size: int) -> None:
            ends.append(flat(train(path).parameters()))
            if batch_size == 4:
                raise RuntimeError("CUDA out of memory. By the test")

        accelerate.utils.find_executable_batch_size(attempt, starting_batch_size=4)()
        return ends

    with pytest.warns(UserWarning, match="exists already") as caught:
        recorded = fit(tmp_path / "run.zarr")
    assert len(caught) == 1
    np.testing.assert_array_equal(recorded, fit(None))
    assert open_run(tmp_path / "run.zarr").n_steps == EPOCHS * N_BATCHES


class Thawed(test_lightning.Module):
    """Trains its last layer only, until a callback thaws the first."""

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=0.1)


class Thaw(lightning.callbacks.BaseFinetuning):  # type: ignore[misc, name-defined]
    def freeze_before_training(self, module: Any) -> None:
        self.freeze(module.net[0])

    def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(module.net[0], optimizer, lr=0.01)


def test_training_is_resumed_after_layers_were_thawed(tmp_path: Path):
    """The recording goes on with the tensors that it has recorded before."""

    def fit(n_epochs: int, path: Path | None, checkpoint: Path | None) -> Any:
        recording = [] if path is None else [LightningCallback(path, **SMALL)]
        module = Thawed()
        trainer = test_lightning.make_trainer(Thaw(), *recording, max_epochs=n_epochs)
        trainer.fit(module, make_loader(), ckpt_path=checkpoint, weights_only=False)
        trainer.save_checkpoint(tmp_path / f"{path is None}.ckpt")
        return flat(module.parameters())

    ends = []
    for path in (None, tmp_path / "run.zarr"):
        told = pytest.warns(UserWarning, match="2 tensors .* not recorded")
        for n_epochs, checkpoint in ((2, None), (3, tmp_path / f"{path is None}.ckpt")):
            with nullcontext() if path is None else told:
                end = fit(n_epochs, path, checkpoint)
        ends.append(end)
    np.testing.assert_array_equal(ends[0], ends[1])
    run = open_run(tmp_path / "run.zarr")
    assert run.n_steps == EPOCHS * N_BATCHES
    assert all("net.3" in name for name in run.layout.names)
    assert np.isfinite(run.steps.grad_norm.values).all()


def test_attempts_are_numbered_before_the_ending(tmp_path: Path):
    assert numbered("s3://bucket/run.zarr/", 3) == "s3://bucket/run-3.zarr"
    assert numbered(tmp_path / "run", 2) == str(tmp_path / "run-2")
    assert Path(numbered("run.zarr", 1)).name == "run.zarr"
    assert attempt_of(tmp_path / "absent", {"created": "never"}) == 1


@pytest.mark.parametrize("moment", ["open", "write"])
@pytest.mark.parametrize("library", ["lightning", "transformers", "accelerate"])
def test_errors_of_a_recording_do_not_end_training(
    library: str, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "run.zarr"
    options: dict[str, Any] = {"flush_rows": 1, **SMALL}

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device, by the test")

    if moment == "open":
        path.mkdir()
        (path / "thesis.tex").touch()
    else:
        monkeypatch.setattr(Writer, "append", full, raising=False)
        monkeypatch.setattr(Writer, "commit", full)

    def fit(record: bool) -> Any:
        if library == "accelerate":
            return flat(train(path if record else None, **options).parameters())
        module: Any
        callbacks: list[Any]
        if library == "lightning":
            module = test_lightning.Module()
            callbacks = [LightningCallback(path, **options)] if record else []
            test_lightning.make_trainer(*callbacks).fit(module, make_loader())
        else:
            module = test_transformers.Regression()
            callbacks = [TrajectoryCallback(path, **options)] if record else []
            test_transformers.make_trainer(tmp_path, module, *callbacks).train()
        return flat(module.parameters())

    with pytest.warns(UserWarning, match="by the test|exists already"):
        recorded = fit(True)
    assert sorted(p.name for p in path.rglob("*.tex")) == (
        ["thesis.tex"] if moment == "open" else []
    )
    if library == "accelerate":
        options.clear()
    np.testing.assert_array_equal(recorded, fit(False))


def test_a_moved_checkpoint_resumes_the_recording(tmp_path: Path):
    """Its folder also has the name of another run's checkpoint."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": N_BATCHES}
    for name in ("first", "second"):
        test_transformers.make_trainer(
            tmp_path / name,
            test_transformers.Regression(),
            TrajectoryCallback(tmp_path / f"{name}.zarr", **SMALL),
            **saving,
        ).train()
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "first" / f"checkpoint-{N_BATCHES}", moved)
    assert (tmp_path / "second" / f"checkpoint-{N_BATCHES}" / STATE_FILE).exists()
    callback = TrajectoryCallback(tmp_path / "first.zarr", **SMALL)
    test_transformers.make_trainer(
        tmp_path / "second", test_transformers.Regression(), callback, **saving
    ).train(resume_from_checkpoint=str(moved))
    run = open_run(tmp_path / "first.zarr")
    assert [r["step"] for r in run.stored.document.resumes] == [N_BATCHES]
    assert run.n_steps == EPOCHS * N_BATCHES
    assert run.steps.grad_norm.notnull().all()


def test_adafactor_is_recorded(tmp_path: Path):
    adafactor = transformers.optimization.Adafactor
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = adafactor([parameter], relative_step=True, warmup_init=True, lr=None)
    with Recorder(tmp_path / "run", {"x": parameter}, optimizer, **SMALL):
        parameter.grad = torch.ones(2)
        optimizer.step()
    assert np.isnan(open_run(tmp_path / "run").steps.lr.values).all()
