"""Recordings by the Lightning callback, compared with plain loops."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
lightning = pytest.importorskip("lightning.pytorch")

from torch.utils.data import DataLoader, IterableDataset

from tests.trajstore.integrations.by_hand import (
    EPOCHS,
    N_BATCHES,
    SMALL,
    check_rows,
    check_same_recording,
    final,
    flat,
    loss_of,
    make_data,
    make_loader,
    make_net,
    make_sgd,
    train_by_hand,
)
from trajstore.integrations.lightning import TrajectoryCallback
from trajstore.reading.run import open_run

pytestmark = [
    # Lightning itself calls deprecated functions of torch.
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning"),
    # Lightning's advice for real training runs.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty"),
    pytest.mark.filterwarnings("ignore:.*when an accelerator is available"),
]


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self, *, dropout: float = 0.0):
        super().__init__()
        self.net = make_net(dropout=dropout)

    def training_step(self, batch: Any, _index: int) -> Any:
        loss = loss_of(self.net, batch)
        self.log("last_loss", loss, on_step=True)
        self.log("of_epoch", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return make_sgd(self)


def make_trainer(*callbacks: Any, package: Any = lightning, **options: Any) -> Any:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "max_epochs": EPOCHS,
    }
    return package.Trainer(callbacks=list(callbacks), **quiet | options)


@pytest.mark.parametrize("accumulate", [1, 3], ids="accumulate={}".format)
@pytest.mark.parametrize("clip", [None, 0.3], ids="clip={}".format)
def test_rows_are_the_optimizer_steps(
    tmp_path: Path, accumulate: int, clip: float | None
):
    module = Module()
    callback = TrajectoryCallback(tmp_path / "run", exact=True, attrs={"note": "hand"})
    trainer = make_trainer(
        callback, accumulate_grad_batches=accumulate, gradient_clip_val=clip
    )
    trainer.fit(module, make_loader())
    steps = train_by_hand(accumulate=accumulate, clip=clip)
    per_epoch = -(-N_BATCHES // accumulate)
    run = check_rows(tmp_path / "run", steps, steps_per_epoch=per_epoch)
    np.testing.assert_array_equal(final(run), flat(module.parameters()))
    # Epochs of few steps share windows.
    assert run.spec.reference_every is None
    assert run.spec.total_steps == EPOCHS * per_epoch
    assert run.attrs == {"note": "hand"}
    assert run.spec.names[0] == "net.0.weight"
    assert callback.recorder is None


@pytest.mark.parametrize("accumulate", [1, 3], ids="accumulate={}".format)
def test_training_is_the_same_bit_for_bit(tmp_path: Path, accumulate: int):
    ends = []
    for callbacks in ([], [TrajectoryCallback(tmp_path / "run", **SMALL)]):
        module = Module(dropout=0.5)
        torch.manual_seed(3)
        make_trainer(
            *callbacks, accumulate_grad_batches=accumulate, gradient_clip_val=0.3
        ).fit(module, make_loader(shuffle=True))
        ends.append((flat(module.parameters()), torch.get_rng_state()))
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
    assert open_run(tmp_path / "run").n_steps == EPOCHS * -(-N_BATCHES // accumulate)


def test_the_other_package_has_a_callback_of_its_own(tmp_path: Path):
    package = pytest.importorskip("pytorch_lightning")
    from trajstore.integrations import pytorch_lightning

    class Other(package.LightningModule):  # type: ignore[misc, name-defined]
        training_step = Module.training_step
        configure_optimizers = Module.configure_optimizers

    module = Other()
    module.net = make_net()
    callback = pytorch_lightning.TrajectoryCallback(tmp_path / "run", exact=True)
    assert isinstance(callback, package.Callback)
    make_trainer(callback, package=package).fit(module, make_loader())
    check_rows(tmp_path / "run", train_by_hand(), steps_per_epoch=N_BATCHES)


def test_gradients_before_clipping_are_recorded_on_request(tmp_path: Path):
    callback = TrajectoryCallback(tmp_path / "run", before_clipping=True, exact=True)
    make_trainer(callback, gradient_clip_val=0.3).fit(Module(), make_loader())
    steps = [step._replace(gradient=step.unclipped) for step in train_by_hand(clip=0.3)]
    run = check_rows(tmp_path / "run", steps, steps_per_epoch=N_BATCHES)
    norms = run.steps[["grad_norm", "step_grad_norm"]].to_dataframe()
    assert (norms.grad_norm > 0.31).any()
    np.testing.assert_allclose(
        norms.step_grad_norm, norms.grad_norm.clip(upper=0.3), 1e-4
    )


def test_metrics_of_the_step_are_recorded_on_request(tmp_path: Path):
    callback = TrajectoryCallback(tmp_path / "run", log=["last_loss"], **SMALL)
    make_trainer(callback).fit(Module(), make_loader())
    run = open_run(tmp_path / "run")
    np.testing.assert_array_equal(run.steps.last_loss, run.steps.loss)


def test_metrics_that_are_not_there_are_named(tmp_path: Path):
    callback = TrajectoryCallback(
        tmp_path / "run", log=["of_epoch"], on_error="raise", **SMALL
    )
    with pytest.raises(
        KeyError, match=r"No metrics \['of_epoch'\] were .*\['last_loss'\]"
    ):
        make_trainer(callback).fit(Module(), make_loader())
    assert open_run(tmp_path / "run").status == "failed"


def save_every(n_steps: int, folder: Path) -> Any:
    return lightning.callbacks.ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=n_steps, save_top_k=-1
    )


def fit_with_checkpoints(
    path: Path, data: Any, *, every: int, resume: bool = False, **options: Any
) -> Any:
    """Train and record, from the first checkpoint or from the start."""
    folder, module = path.with_suffix(".checkpoints"), Module()
    make_trainer(
        TrajectoryCallback(path, **SMALL),
        save_every(every, folder),
        enable_checkpointing=True,
        **options,
    ).fit(
        module,
        data,
        ckpt_path=folder / f"step={every}.ckpt" if resume else None,
    )
    return module


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")
@pytest.mark.parametrize("stop", [N_BATCHES, N_BATCHES + 4], ids=["between", "within"])
def test_a_checkpoint_resumes_the_recording(tmp_path: Path, stop: int):
    make_trainer(TrajectoryCallback(tmp_path / "whole", **SMALL)).fit(
        Module(), make_loader()
    )
    path = tmp_path / "resumed"
    fit_with_checkpoints(path, make_loader(), every=stop, max_epochs=2)
    module = fit_with_checkpoints(path, make_loader(), every=stop, resume=True)
    resumed = open_run(path)
    assert [r["step"] for r in resumed.stored.document.resumes] == [stop]
    assert resumed.n_steps == EPOCHS * N_BATCHES
    np.testing.assert_array_equal(final(resumed), flat(module.parameters()))
    if stop == N_BATCHES:
        # Within an epoch, Lightning does not restore the order of the data.
        check_same_recording(tmp_path / "whole", path)


def test_training_continues_after_its_end(tmp_path: Path):
    """A checkpoint saved after training also holds the state of the recording."""
    trainer = make_trainer(TrajectoryCallback(tmp_path / "run", **SMALL), max_epochs=1)
    trainer.fit(Module(), make_loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    make_trainer(TrajectoryCallback(tmp_path / "run", **SMALL)).fit(
        Module(), make_loader(), ckpt_path=tmp_path / "last.ckpt"
    )
    make_trainer(TrajectoryCallback(tmp_path / "whole", **SMALL)).fit(
        Module(), make_loader()
    )
    resumed, whole = open_run(tmp_path / "run"), open_run(tmp_path / "whole")
    np.testing.assert_array_equal(resumed.steps.loss, whole.steps.loss)
    np.testing.assert_array_equal(resumed.steps.epoch, whole.steps.epoch)
    np.testing.assert_array_equal(final(resumed), final(whole))


def test_a_checkpoint_without_state_is_resumed_from(tmp_path: Path):
    trainer = make_trainer(max_epochs=1)
    trainer.fit(Module(), make_loader())
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    make_trainer(TrajectoryCallback(tmp_path / "run", **SMALL)).fit(
        Module(), make_loader(), ckpt_path=tmp_path / "plain.ckpt"
    )
    run = open_run(tmp_path / "run")
    assert run.n_steps == EPOCHS * N_BATCHES
    losses = [step.loss for step in train_by_hand()]
    assert np.isnan(run.steps.loss[:N_BATCHES]).all()
    np.testing.assert_allclose(run.steps.loss[N_BATCHES:], losses[N_BATCHES:], 1e-5)


def test_an_exception_leaves_a_failed_store(tmp_path: Path):
    class Failing(Module):
        def on_train_batch_start(self, _batch: Any, index: int) -> None:
            if index == 5:
                raise RuntimeError("No more.")

    callback = TrajectoryCallback(tmp_path / "run", **SMALL)
    trainer = make_trainer(callback)
    with pytest.raises(RuntimeError, match=r"No more\."):
        trainer.fit(Failing(), make_loader())
    run = open_run(tmp_path / "run")
    assert (run.status, run.n_steps) == ("failed", 5)
    assert callback.recorder is None
    # The callback's hooks are removed, so a step is no longer recorded.
    trainer.optimizers[0].step()
    assert open_run(tmp_path / "run").n_steps == 5


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        return iter(make_data())


def test_epochs_of_unknown_length_are_the_trainers(tmp_path: Path):
    callback = TrajectoryCallback(tmp_path / "run", exact=True)
    make_trainer(callback).fit(Module(), DataLoader(Stream(), batch_size=2))
    run = check_rows(tmp_path / "run", train_by_hand(), steps_per_epoch=N_BATCHES)
    assert run.spec.reference_every is run.spec.total_steps is None


def test_epochs_of_varying_length_are_the_trainers(tmp_path: Path):
    accumulation = lightning.callbacks.GradientAccumulationScheduler({1: 2})
    callback = TrajectoryCallback(tmp_path / "run", **SMALL)
    make_trainer(accumulation, callback).fit(Module(), make_loader())
    run = open_run(tmp_path / "run")
    np.testing.assert_array_equal(run.steps.epoch, [0] * 11 + [1] * 6 + [2] * 6)


def test_a_checkpoint_within_an_epoch_resumes_in_that_epoch(tmp_path: Path):
    data, stop = DataLoader(Stream(), batch_size=2), N_BATCHES + 4
    fit_with_checkpoints(tmp_path / "run", data, every=stop, max_steps=stop)
    fit_with_checkpoints(tmp_path / "run", data, every=stop, resume=True)
    epochs = open_run(tmp_path / "run").steps.epoch
    assert epochs[:stop].values.tolist() == [0] * N_BATCHES + [1] * 4
    assert epochs[stop] == 1
    assert epochs[-1] == 2


def test_losses_and_gradients_are_recorded_unscaled(tmp_path: Path):
    precision = lightning.plugins.MixedPrecision(
        "16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0)
    )
    callback = TrajectoryCallback(tmp_path / "run", exact=True)
    make_trainer(callback, plugins=[precision], accumulate_grad_batches=3).fit(
        Module(), make_loader()
    )
    run, steps = open_run(tmp_path / "run"), train_by_hand(accumulate=3)
    # Half precision has 11 significant bits.
    np.testing.assert_allclose(run.steps.loss, [s.loss for s in steps], rtol=0.01)
    norms = [np.linalg.norm(s.gradient) for s in steps]
    np.testing.assert_allclose(run.steps.grad_norm, norms, rtol=0.02)
    np.testing.assert_array_equal(run.steps.epoch, np.repeat([0, 1, 2], 4))


class Pair(Module):
    """Two networks whose optimizers step manually, in turn or together."""

    def __init__(self, *, together: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = make_net()
        self.together = together

    def training_step(self, batch: Any, _index: int) -> None:
        nets = {"net": self.net, "other": self.other}
        optimizers = self.optimizers()
        for (name, net), optimizer in zip(nets.items(), optimizers, strict=True):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.log(f"{name}_loss", loss)
            if not self.together:
                optimizer.step()
        if self.together:
            for optimizer in optimizers:
                optimizer.step()

    def configure_optimizers(self) -> Any:
        return [make_sgd(self.net), make_sgd(self.other)]


def test_several_optimizers_have_a_callback_each(tmp_path: Path):
    callbacks = [
        TrajectoryCallback(tmp_path / name, optimizer=i, log=[f"{name}_loss"], **SMALL)
        for i, name in enumerate(["net", "other"])
    ]
    make_trainer(*callbacks).fit(Pair(), make_loader())
    runs = [open_run(tmp_path / name) for name in ("net", "other")]
    steps = train_by_hand()
    assert [run.n_steps for run in runs] == [len(steps)] * 2
    assert [run.spec.names[0] for run in runs] == ["net.0.weight", "other.0.weight"]
    np.testing.assert_allclose(runs[0].steps.net_loss, [s.loss for s in steps], 1e-5)
    assert "loss" not in runs[0].steps
    assert callbacks[0].state_key != callbacks[1].state_key


def test_optimizers_that_step_together_are_one(tmp_path: Path):
    callback = TrajectoryCallback(
        tmp_path / "run", optimizer=[0, 1], log=["net_loss"], **SMALL
    )
    module = Pair(together=True)
    make_trainer(callback).fit(module, make_loader())
    run, steps = open_run(tmp_path / "run"), train_by_hand()
    # The networks are identical, and have the same inputs.
    norms = [2**0.5 * np.linalg.norm(step.gradient) for step in steps]
    np.testing.assert_allclose(run.steps.grad_norm, norms, 1e-4)
    np.testing.assert_allclose(run.steps.net_loss, [s.loss for s in steps], 1e-4)
    np.testing.assert_array_equal(final(run), flat(module.parameters()))


@pytest.mark.parametrize("optimizer", [None, 2])
def test_one_of_several_optimizers_is_to_be_chosen(
    tmp_path: Path, optimizer: int | None
):
    callback = TrajectoryCallback(
        tmp_path / "run", optimizer=optimizer, on_error="raise"
    )
    with pytest.raises(ValueError, match="has 2 optimizers, and `optimizer` is"):
        make_trainer(callback).fit(Pair(), make_loader())
    assert not (tmp_path / "run").exists()


def test_steps_of_several_optimizers_are_not_guessed(tmp_path: Path):
    trainer = make_trainer(max_epochs=1)
    trainer.fit(Pair(), make_loader())
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    callback = TrajectoryCallback(tmp_path / "run", optimizer=0, on_error="raise")
    with pytest.raises(
        ValueError, match=r"2 optimizers .*`global_step` = 22 does not determine"
    ):
        make_trainer(callback).fit(
            Pair(), make_loader(), ckpt_path=tmp_path / "plain.ckpt"
        )


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_development_run_is_not_recorded(tmp_path: Path):
    callback = TrajectoryCallback(tmp_path / "run")
    make_trainer(callback, fast_dev_run=True).fit(Module(), make_loader())
    assert not (tmp_path / "run").exists()


def test_other_processes_do_not_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lightning.Trainer, "is_global_zero", False)
    callback = TrajectoryCallback(tmp_path / "run", log=["nothing"])
    trainer = make_trainer(callback)
    trainer.fit(Module(), make_loader())
    assert not (tmp_path / "run").exists()
    assert callback.state_dict() == {}


def test_resuming_is_the_callbacks_own(tmp_path: Path):
    with pytest.raises(TypeError, match=r"\['resume'\] .*ckpt_path"):
        TrajectoryCallback(tmp_path / "run", resume=True)
