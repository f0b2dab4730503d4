"""A callback that records the training of Hugging Face's ``Trainer``."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, Unpack

import torch
from torch import Tensor, nn
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from trajstore.format.window_length import epoch_as_window
from trajstore.integrations.accelerate import inner_optimizer
from trajstore.integrations.attempts import (
    attempt_of,
    created_at,
    default_on_error,
    numbered,
    tolerant,
)
from trajstore.integrations.loggers import transformers_sinks, with_trainer
from trajstore.integrations.participation import takes_part
from trajstore.recording.options import RecorderKeywords
from trajstore.recording.recorder import Recorder

STATE_FILE: Final = "trajstore.pt"
"""Name of the file in a checkpoint's folder that holds the state of the recording."""


class TrajectoryCallback(TrainerCallback):
    """Record every optimizer step of ``Trainer.train`` into a trajectory store.

    Row k describes optimizer step k. Its ``loss`` is the loss in the model's outputs, averaged,
    with the trainer's weights, over all batches that were accumulated for the step; with
    several processes, it is the loss of the first process. Gradients are recorded as the
    optimizer finds them: accumulated, unscaled and clipped.

    Recording begins and ends with training. Trainers do not notify callbacks of exceptions. To
    close the store as failed after an exception, use the callback as a context manager around
    ``trainer.train()``; otherwise the store is closed when the program ends.
    Checkpoints of the trainer contain the state of the recording;
    ``train(resume_from_checkpoint=...)`` resumes it.

    Parameters
    ----------
    path : str or os.PathLike
        Path of the store, see `trajstore.Recorder`.
    **options : Any
        Other options of `trajstore.Recorder`, except `resume` and `step`. Epochs begin when the
        trainer begins them, however long they are. By default, `total_steps` and
        `reference_every` are taken from the trainer. `report_to` may also be ``"trainer"``, for
        the trackers to which the trainer reports. The default of `on_error` is ``"warn"``: an
        error of the recording ends the recording, and training continues. Sharded recordings
        raise errors.

    Raises
    ------
    TypeError
        If `resume` or `step` is among the options.

    Notes
    -----
    A forward hook takes the loss from the model's outputs, because trainers do not give the
    loss to callbacks: ``on_log`` receives a mean over ``logging_steps``, after the step. No
    ``loss`` is recorded if the model returns no loss, as with label smoothing or a
    ``compute_loss_func``. The same holds under ``torch_compile`` and under ``DataParallel``,
    where the hook cannot be used. A trainer that overrides ``compute_loss`` may call
    ``callback.log(my_loss=loss)``.

    If training begins again at step 0, for example in a search or with a smaller batch after
    running out of memory, it is recorded to another store: ``run-2.zarr``, then ``run-3.zarr``
    and so on. A checkpoint may have been moved: without its state, the recording resumes from
    the store, and only one product of two gradients is unknown.

    With ``load_best_model_at_end``, the final iterate is the best model, and the recorder warns
    that the parameters have changed since the last step.
    """

    def __init__(self, path: str | Path, **options: Unpack[RecorderKeywords]) -> None:
        if taken := {"resume", "step"} & options.keys():
            raise TypeError(
                f"{sorted(taken)} cannot be given to this callback, which resumes by itself: "
                "call trainer.train(resume_from_checkpoint=...)."
            )
        self._path = path
        self._options: dict[str, Any] = {**options}
        self._recorder: Recorder | None = None
        self._unhook: Callable[[], None] = _do_nothing
        self._counts_epochs = True
        self._is_within_epoch = False
        self._losses: list[Tensor] = []
        self._loss_is_share = False
        self._attempt = 0  # number of training runs that have begun at step 0

    def _raises(self) -> bool:
        return self._options.get("on_error") == "raise"

    @property
    def recorder(self) -> Recorder | None:
        """The recorder, if this process records and training is under way; otherwise None."""
        return self._recorder

    @tolerant
    def log(self, **scalars: float | Tensor) -> None:
        """Add scalars to the row of the next optimizer step, in processes that record.

        Parameters
        ----------
        **scalars : float or torch.Tensor
            Numbers by name, see `trajstore.Recorder.log`.
        """
        if self._recorder is not None:
            self._recorder.log(**scalars)

    @tolerant
    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Open or resume the recording."""
        self._close_as_failed(None)
        model, optimizer = kwargs["model"], inner_optimizer(kwargs["optimizer"])
        if not takes_part([optimizer], is_main=state.is_world_process_zero):
            return
        steps_per_epoch = _steps_per_epoch(args, kwargs.get("train_dataloader"))
        # Epochs may vary in length, so the trainer begins them. A window is as long as the
        # first epoch, unless this is short.
        options = {
            "total_steps": state.max_steps,
            "reference_every": epoch_as_window(steps_per_epoch),
            **default_on_error(self._options, [optimizer]),
        }
        if "report_to" in options:
            sinks = transformers_sinks(args)
            options["report_to"] = with_trainer(options["report_to"], sinks)
        self._counts_epochs = options.get("steps_per_epoch") is not None
        self._is_within_epoch = (
            state.global_step % (steps_per_epoch or args.max_steps) > 0
        )
        resumption = self._resumption(args, state)
        self._recorder = Recorder(
            numbered(self._path, self._attempt + (not resumption)),
            model,
            optimizer,
            **resumption,
            **options,
        )
        self._attempt += not resumption
        self._losses = []
        if not args.torch_compile and args.n_gpu <= 1:
            hook = model.register_forward_hook(self._take_loss, with_kwargs=True)
            self._unhook = hook.remove

    def _resumption(
        self, args: TrainingArguments, state: TrainerState
    ) -> dict[str, Any]:
        """Return the options that resume the recording, if training is resumed."""
        if state.global_step == 0:
            return {}
        checkpoint = args.resume_from_checkpoint
        folders = [Path(checkpoint)] if isinstance(checkpoint, str) else []
        for folder in [*folders, _checkpoint(args, state)]:
            if (folder / STATE_FILE).exists():
                saved = torch.load(folder / STATE_FILE, weights_only=True)
                self._attempt = attempt_of(self._path, saved)
                with suppress(OSError, ValueError):
                    location = numbered(self._path, self._attempt)
                    # A folder of this name may belong to another run.
                    if created_at(location) == saved.get("created"):
                        return {"resume": saved}
        self._attempt = self._attempt or 1
        # The steps are in the store; only the last gradient is unknown.
        return {"resume": True, "step": state.global_step}

    @tolerant
    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Begin an epoch, unless the recorder itself counts epochs."""
        # Training may be resumed within an epoch.
        is_new, self._is_within_epoch = not self._is_within_epoch, False
        if self._recorder is not None and not self._counts_epochs and is_new:
            self._recorder.start_epoch()

    def _take_loss(
        self, module: nn.Module, _args: Any, kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """Keep the loss of a batch for the row of its step."""
        if not (module.training and torch.is_grad_enabled()):
            return
        loss = output.get("loss") if isinstance(output, Mapping) else output[0]
        if isinstance(loss, Tensor) and loss.numel() == 1:
            # Share memory with the loss, which the trainer may still multiply in place.
            self._losses.append(loss.detach().reshape(()))
            self._loss_is_share = kwargs.get("num_items_in_batch") is not None

    @tolerant
    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Log the loss of a step when its gradients are complete."""
        if self._recorder is not None and self._losses:
            losses = torch.stack(self._losses)
            # Given the number of items in all batches, a model divides its loss by this number.
            self._recorder.log(
                loss=losses.sum() if self._loss_is_share else losses.mean()
            )
        self._losses = []

    @tolerant
    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Save the state of the recording in the trainer's checkpoint."""
        if self._recorder is None:
            return
        # All processes that record take part in making the state.
        recording = self._recorder.state_dict()
        if state.is_world_process_zero:
            folder = _checkpoint(args, state)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(recording, folder / STATE_FILE)

    @tolerant
    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Close the recording."""
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
        """Close a recording that an unfinished training run has left open."""
        if (recorder := self._release()) is not None:
            exception = exception or RuntimeError("Training did not reach its end.")
            recorder.__exit__(type(exception), exception, exception.__traceback__)

    def _release(self) -> Recorder | None:
        self._unhook()
        recorder, self._recorder = self._recorder, None
        return recorder


def _do_nothing() -> None:
    pass


def _steps_per_epoch(args: TrainingArguments, loader: Any) -> int | None:
    """Count the optimizer steps of an epoch as the trainer counts them."""
    try:
        n_batches = len(loader)
    except TypeError:
        return None
    return max(ceil(n_batches / args.gradient_accumulation_steps), 1)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder of the checkpoint of the current step."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
