"""Record what the ``Trainer`` of Hugging Face transformers does, with a callback."""

from collections.abc import Callable, Mapping
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from trajstore.integrations.accelerate import inner_optimizer
from trajstore.integrations.participation import takes_part
from trajstore.recording.recorder import Recorder

STATE_FILE: Final = "trajstore.pt"
"""In the folder of a checkpoint: what is needed to go on from there."""


class TrajectoryCallback(TrainerCallback):
    """Records every optimizer step of ``Trainer.train`` into a trajectory store.

    Row k is the k-th optimizer step. Its ``loss`` is that of the model's outputs, over
    all batches that were accumulated for the step, weighted as the trainer weights them;
    in a distributed training, of the first process. Gradients are recorded as the
    optimizer finds them: accumulated, unscaled and clipped.

    Recording begins where training does, and ends with it. Trainers do not tell
    callbacks of exceptions: used as a context manager around ``trainer.train()``, it
    closes the store as failed where an exception passes; else this happens when
    the program ends. Checkpoints of the trainer hold what is needed to go on;
    ``train(resume_from_checkpoint=...)`` resumes the recording with the training.

    Parameters
    ----------
    path : str or os.PathLike
        Of the store, as `trajstore.Recorder` takes it.
    **options : Any
        What else `trajstore.Recorder` takes, except `resume` and `step`. The default of
        `total_steps` is the trainer's; that of `steps_per_epoch`, too, where it is the
        same in all epochs; elsewhere epochs begin when the trainer begins them.

    Raises
    ------
    TypeError
        If `resume` or `step` is among the options.

    Notes
    -----
    Callbacks are not told the loss of a step: what ``on_log`` gets comes after the step,
    and is a mean over ``logging_steps``. It is taken from what the model returns, by a
    forward hook. No ``loss`` is recorded where the model returns none, as with label
    smoothing or a ``compute_loss_func``; nor under ``torch_compile`` and
    ``DataParallel``, where there is no place for the hook. A trainer whose
    ``compute_loss`` is overridden may call ``callback.log(my_loss=loss)``.

    With ``load_best_model_at_end`` the final iterate is the best model, and the recorder
    warns of parameters that have changed since the last step.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        if taken := {"resume", "step"} & options.keys():
            raise TypeError(
                f"{sorted(taken)} are not for this callback, which resumes by itself: "
                "call trainer.train(resume_from_checkpoint=...)."
            )
        self._path = path
        self._options = options
        self._recorder: Recorder | None = None
        self._unhook: Callable[[], None] = _nothing
        self._counts_epochs = True
        self._is_within_epoch = False
        self._losses: list[Tensor] = []
        self._is_share = False

    @property
    def recorder(self) -> Recorder | None:
        """The recorder, while there is one: in training, where this process records."""
        return self._recorder

    def log(self, **scalars: float | Tensor) -> None:
        """Add scalars to the row of the next optimizer step, where one is recorded.

        Parameters
        ----------
        **scalars : float or torch.Tensor
            As `trajstore.Recorder.log` takes them.
        """
        if self._recorder is not None:
            self._recorder.log(**scalars)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Begin to record, or go on."""
        self._close_as_failed(None)
        model, optimizer = kwargs["model"], inner_optimizer(kwargs["optimizer"])
        if not takes_part([optimizer], is_main=state.is_world_process_zero):
            return
        steps_per_epoch = _steps_per_epoch(args, kwargs.get("train_dataloader"))
        options = {"total_steps": state.max_steps} | self._options
        if not args.fp16:
            # A scaler leaves steps out.
            options = {"steps_per_epoch": steps_per_epoch} | options
        self._counts_epochs = options.get("steps_per_epoch") is not None
        self._is_within_epoch = (
            state.global_step % (steps_per_epoch or args.max_steps) > 0
        )
        self._recorder = Recorder(
            self._path, model, optimizer, **_resumption(args, state), **options
        )
        self._losses = []
        if not args.torch_compile and args.n_gpu <= 1:
            hook = model.register_forward_hook(self._take_loss, with_kwargs=True)
            self._unhook = hook.remove

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Begin an epoch, where steps do not tell."""
        # What is resumed may be in the midst of one.
        is_new, self._is_within_epoch = not self._is_within_epoch, False
        if self._recorder is not None and not self._counts_epochs and is_new:
            self._recorder.start_epoch()

    def _take_loss(
        self, module: nn.Module, _args: Any, kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """Keep the loss of a batch for the step that it belongs to."""
        if not (module.training and torch.is_grad_enabled()):
            return
        loss = output.get("loss") if isinstance(output, Mapping) else output[0]
        if isinstance(loss, Tensor) and loss.numel() == 1:
            # No copy: the trainer may yet multiply it in place.
            self._losses.append(loss.detach().reshape(()))
            self._is_share = kwargs.get("num_items_in_batch") is not None

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Log the loss of the step, whose gradients are there now."""
        if self._recorder is not None and self._losses:
            losses = torch.stack(self._losses)
            # Models that were told of the items of all batches have divided by them.
            self._recorder.log(loss=losses.sum() if self._is_share else losses.mean())
        self._losses = []

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Put what is needed to go on beside the trainer's checkpoint."""
        if self._recorder is None:
            return
        # Processes that record together also make the state together.
        recorded = self._recorder.state_dict()
        if state.is_world_process_zero:
            folder = _checkpoint(args, state)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(recorded, folder / STATE_FILE)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """End the recording."""
        if (recorder := self._release()) is not None:
            recorder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_as_failed(exception)

    def _close_as_failed(self, exception: BaseException | None) -> None:
        """End what a training has left behind that did not come to its end."""
        if (recorder := self._release()) is not None:
            exception = exception or RuntimeError("Training did not come to its end.")
            recorder.__exit__(type(exception), exception, exception.__traceback__)

    def _release(self) -> Recorder | None:
        self._unhook()
        recorder, self._recorder = self._recorder, None
        return recorder


def _nothing() -> None:
    pass


def _steps_per_epoch(args: TrainingArguments, loader: Any) -> int | None:
    """Count the optimizer steps of an epoch, as the trainer does."""
    try:
        n_batches = len(loader)
    except TypeError:
        return None
    return max(ceil(n_batches / args.gradient_accumulation_steps), 1)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder that the trainer calls after the current step."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _resumption(args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
    """Find where a recording goes on, if the training does."""
    if state.global_step == 0:
        return {}
    named = args.resume_from_checkpoint
    folders = [Path(named)] if isinstance(named, str) else []
    for folder in [*folders, _checkpoint(args, state)]:
        if (folder / STATE_FILE).exists():
            saved = torch.load(folder / STATE_FILE, weights_only=True)
            return {"resume": saved}
    # The steps are in the store; only the last gradient is not known.
    return {"resume": True, "step": state.global_step}
