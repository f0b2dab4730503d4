"""Recordings by the callback for transformers' trainer, compared with plain loops."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn
from torch.utils.data import IterableDataset, SequentialSampler

from tests.trajstore.integrations.by_hand import (
    BATCH,
    EPOCHS,
    N_BATCHES,
    SMALL,
    check_rows,
    check_same_recording,
    final,
    flat,
    loss_of,
    make_data,
    make_net,
    make_sgd,
    train_by_hand,
)
from trajstore.integrations.transformers import STATE_FILE, TrajectoryCallback
from trajstore.reading.run import open_run


@pytest.fixture(autouse=True, scope="module")
def _imports_are_kept_out_of_garbage_collection() -> Iterator[None]:
    """Freeze modules: garbage collection after every training would take 0.4 s."""
    gc.freeze()
    yield
    gc.unfreeze()


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()

    def forward(self, inputs: Any, targets: Any) -> Any:
        return {"loss": loss_of(self.net, (inputs, targets))}


class InOrder(transformers.Trainer):  # type: ignore[misc, name-defined]
    def _get_train_sampler(self, *_args: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def regression_data() -> list[dict[str, Any]]:
    inputs, targets = make_data().tensors
    return [{"inputs": x, "targets": y} for x, y in zip(inputs, targets, strict=True)]


def make_trainer(
    folder: Path,
    model: nn.Module,
    *callbacks: Any,
    data: Any = None,
    trainer: Any = InOrder,
    **options: Any,
) -> Any:
    quiet: dict[str, Any] = {
        "disable_tqdm": True,
        "learning_rate": 0.1,
        "logging_strategy": "no",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "remove_unused_columns": False,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
    }
    return trainer(
        model=model,
        args=transformers.TrainingArguments(str(folder), **quiet | options),
        train_dataset=regression_data() if data is None else data,
        callbacks=list(callbacks),
        optimizers=(make_sgd(model), None),
    )


@pytest.mark.parametrize("accumulate", [1, 3], ids="accumulate={}".format)
@pytest.mark.parametrize("clip", [None, 0.3], ids="clip={}".format)
def test_rows_are_the_optimizer_steps(
    tmp_path: Path, accumulate: int, clip: float | None
):
    model = Regression()
    callback = TrajectoryCallback(tmp_path / "run", exact=True, attrs={"note": "hand"})
    make_trainer(
        tmp_path,
        model,
        callback,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=clip or 0.0,
    ).train()
    steps = train_by_hand(accumulate=accumulate, clip=clip, remainder_is_whole=True)
    per_epoch = -(-N_BATCHES // accumulate)
    run = check_rows(tmp_path / "run", steps, steps_per_epoch=per_epoch)
    np.testing.assert_array_equal(final(run), flat(model.parameters()))
    # Epochs of few steps share windows.
    assert run.spec.reference_every is None
    assert run.spec.total_steps == EPOCHS * per_epoch
    assert run.attrs == {"note": "hand"}
    assert run.spec.names[0] == "net.0.weight"
    assert callback.recorder is None


def tiny_bert() -> Any:
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    return transformers.BertForSequenceClassification(config)


def tiny_llama() -> Any:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    return transformers.LlamaForCausalLM(config)


def token_data(*, classes: bool) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    examples = []
    for i in range(BATCH * N_BATCHES):
        tokens = torch.randint(20, (8,), generator=generator)
        labels = tokens.clone()
        labels[: i % 7] = -100
        examples.append(
            {"input_ids": tokens, "labels": torch.tensor(i % 2) if classes else labels}
        )
    return examples


def test_training_is_the_same_bit_for_bit(tmp_path: Path):
    ends = []
    for callbacks in ([], [TrajectoryCallback(tmp_path / "run", **SMALL)]):
        model = tiny_bert()
        make_trainer(
            tmp_path,
            model,
            *callbacks,
            data=token_data(classes=True),
            trainer=transformers.Trainer,
            gradient_accumulation_steps=3,
            max_grad_norm=1.0,
        ).train()
        ends.append((flat(model.parameters()), torch.get_rng_state()))
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
    assert open_run(tmp_path / "run").n_steps == 12


class Logs(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    """Keep the losses that the trainer itself reports after every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, *_args: Any, logs: Any, **_kwargs: Any) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []


@pytest.mark.parametrize("accumulate", [1, 3], ids="accumulate={}".format)
def test_losses_are_weighted_as_the_trainer_weights_them(
    tmp_path: Path, accumulate: int
):
    """Batches of a language model are weighted by their number of tokens."""
    data, logs = token_data(classes=False), Logs()
    make_trainer(
        tmp_path,
        tiny_llama(),
        TrajectoryCallback(tmp_path / "run", **SMALL),
        logs,
        data=data,
        gradient_accumulation_steps=accumulate,
        logging_steps=1,
        logging_strategy="steps",
    ).train()
    run = open_run(tmp_path / "run")
    np.testing.assert_allclose(run.steps.loss, logs.losses, rtol=1e-4)
    model = tiny_llama()
    tokens, labels = (
        torch.stack([example[name] for example in data[: BATCH * accumulate]])
        for name in ("input_ids", "labels")
    )
    loss = nn.functional.cross_entropy(
        model(input_ids=tokens).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    loss.backward()
    norm = np.linalg.norm(flat([p.grad for p in model.parameters()]))
    assert float(run.steps.loss[0]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(run.steps.grad_norm[0]) == pytest.approx(norm, rel=1e-4)


def test_evaluation_leaves_losses_alone(tmp_path: Path):
    callback = TrajectoryCallback(tmp_path / "run", **SMALL)
    trainer = make_trainer(
        tmp_path, Regression(), callback, prediction_loss_only=True, eval_on_start=True
    )
    trainer.eval_dataset = regression_data()[:3]
    trainer.args.eval_strategy = "steps"
    trainer.args.eval_steps = 1
    trainer.train()
    losses = [step.loss for step in train_by_hand()]
    np.testing.assert_allclose(open_run(tmp_path / "run").steps.loss, losses, 1e-4)


@pytest.mark.parametrize("stop", [N_BATCHES, N_BATCHES + 4], ids=["between", "within"])
def test_a_checkpoint_resumes_the_recording(tmp_path: Path, stop: int):
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": stop}
    whole = TrajectoryCallback(tmp_path / "whole", **SMALL)
    make_trainer(tmp_path, Regression(), whole, **saving).train()
    shutil.copytree(tmp_path / "whole", tmp_path / "kept")
    model = Regression()
    make_trainer(
        tmp_path, model, TrajectoryCallback(tmp_path / "whole", **SMALL), **saving
    ).train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    resumed = open_run(tmp_path / "whole")
    assert [r["step"] for r in resumed.stored.document.resumes] == [stop]
    np.testing.assert_array_equal(final(resumed), flat(model.parameters()))
    check_same_recording(tmp_path / "kept", tmp_path / "whole")


def test_a_checkpoint_without_state_is_resumed_from(tmp_path: Path):
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": N_BATCHES}
    make_trainer(tmp_path, Regression(), max_steps=N_BATCHES, **saving).train()
    assert not (tmp_path / f"checkpoint-{N_BATCHES}" / STATE_FILE).exists()
    make_trainer(
        tmp_path, Regression(), TrajectoryCallback(tmp_path / "run", **SMALL), **saving
    ).train(resume_from_checkpoint=True)
    run = open_run(tmp_path / "run")
    losses = [step.loss for step in train_by_hand()]
    assert np.isnan(run.steps.loss[:N_BATCHES]).all()
    np.testing.assert_allclose(run.steps.loss[N_BATCHES:], losses[N_BATCHES:], 1e-5)


class Failing(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    def on_step_end(
        self, _args: Any, state: Any, *_others: Any, **_kwargs: Any
    ) -> None:
        if state.global_step == 5:
            raise ZeroDivisionError("No more.")


def test_an_exception_leaves_a_failed_store(tmp_path: Path):
    model = Regression()
    with (
        pytest.raises(ZeroDivisionError, match=r"No more\."),
        TrajectoryCallback(tmp_path / "run", **SMALL) as callback,
    ):
        make_trainer(tmp_path, model, callback, Failing()).train()
    run = open_run(tmp_path / "run")
    assert (run.status, run.n_steps) == ("failed", 5)
    assert callback.recorder is None
    assert not model._forward_hooks


def test_a_recording_left_open_by_an_exception_is_closed_by_the_next(tmp_path: Path):
    callback = TrajectoryCallback(tmp_path / "run", **SMALL)
    trainer = make_trainer(tmp_path, Regression(), callback, Failing())
    with pytest.raises(ZeroDivisionError, match=r"No more\."):
        trainer.train()
    assert open_run(tmp_path / "run").status == "running"
    trainer.remove_callback(Failing)
    trainer.train()
    assert open_run(tmp_path / "run").status == "failed"
    again = open_run(tmp_path / "run-2")
    assert (again.status, again.n_steps) == ("complete", EPOCHS * N_BATCHES)


def test_scalars_logged_by_users_belong_to_the_next_step(tmp_path: Path):
    class Custom(InOrder):
        def compute_loss(self, model: Any, inputs: Any, **_kwargs: Any) -> Any:
            loss = 2 * loss_of(model.net, (inputs["inputs"], inputs["targets"]))
            callback.log(doubled=loss)
            return loss

    callback = TrajectoryCallback(tmp_path / "run", **SMALL)
    make_trainer(tmp_path, Regression(), callback, trainer=Custom).train()
    callback.log(doubled=0.0)
    run, first = open_run(tmp_path / "run"), train_by_hand()[0]
    assert float(run.steps.doubled[0]) == pytest.approx(2 * first.loss, rel=1e-5)
    assert float(run.steps.grad_norm[0]) == pytest.approx(
        2 * np.linalg.norm(first.gradient), rel=1e-5
    )
    assert "loss" not in run.steps


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        return iter(regression_data())


def test_epochs_of_unknown_length_are_the_trainers(tmp_path: Path):
    callback = TrajectoryCallback(tmp_path / "run", **SMALL)
    make_trainer(
        tmp_path, Regression(), callback, data=Stream(), max_steps=2 * N_BATCHES + 3
    ).train()
    run = open_run(tmp_path / "run")
    assert run.n_steps == 2 * N_BATCHES + 3
    np.testing.assert_array_equal(run.steps.epoch, np.arange(run.n_steps) // N_BATCHES)
    assert run.spec.steps_per_epoch is None


def test_other_processes_do_not_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transformers.Trainer, "is_world_process_zero", lambda _: False)
    model = Regression()
    make_trainer(
        tmp_path,
        model,
        TrajectoryCallback(tmp_path / "run"),
        save_strategy="steps",
        save_steps=N_BATCHES,
    ).train()
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.rglob(STATE_FILE))


def test_resuming_is_the_callbacks_own(tmp_path: Path):
    with pytest.raises(TypeError, match=r"\['step'\] .*resume_from_checkpoint"):
        TrajectoryCallback(tmp_path / "run", step=3)
