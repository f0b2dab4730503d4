"""Methods of the callbacks for the ``Trainer`` of Lightning's two packages."""

from collections.abc import Mapping, Sequence
from math import ceil, isfinite
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from trajstore.format.window_length import epoch_as_window
from trajstore.integrations.attempts import (
    attempt_of,
    default_on_error,
    numbered,
    tolerant,
    warn_of,
)
from trajstore.integrations.loggers import LightningLoggers, with_trainer
from trajstore.integrations.participation import takes_part
from trajstore.recording.options import RecorderKeywords
from trajstore.recording.recorder import Recorder


class LightningHooks:
    """The methods of a ``TrajectoryCallback``, without the library's base class."""

    def __init__(
        self,
        path: str | Path,
        *,
        log: Sequence[str] = (),
        optimizer: int | Sequence[int] | None = None,
        before_clipping: bool = False,
        **options: Unpack[RecorderKeywords],
    ) -> None:
        if taken := {"resume", "step"} & options.keys():
            raise TypeError(
                f"{sorted(taken)} cannot be given to this callback, which resumes by itself: "
                "call trainer.fit(..., ckpt_path=...)."
            )
        self._path = path
        self._log = tuple(log)
        self._indices = [optimizer] if isinstance(optimizer, int) else optimizer
        # The trainer asks for this name before it calls each of the methods.
        self._state_key = f"TrajectoryCallback{[*(self._indices or [0])]}"
        self._before_clipping = before_clipping
        self._options: dict[str, Any] = {**options}
        self._recorder: Recorder | None = None
        self._optimizers: Sequence[Optimizer] = []
        self._counts_epochs = True
        self._epoch: int | None = None
        self._losses: list[Tensor] = []
        self._state: dict[str, Any] = {}
        self._attempt = 0  # number of training runs that have begun at step 0
        self._loggers: LightningLoggers | None = None

    def _raises(self) -> bool:
        return self._options.get("on_error") == "raise"

    def _release(self) -> Recorder | None:
        recorder, self._recorder = self._recorder, None
        return recorder

    @property
    def recorder(self) -> Recorder | None:
        """The recorder, if this process records and training is under way; otherwise None."""
        return self._recorder

    @property
    def state_key(self) -> str:
        """Name of the state in checkpoints; the name contains the optimizers' indices."""
        return self._state_key

    @tolerant
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open or resume the recording."""
        if trainer.fast_dev_run:
            return
        optimizers = _choose(trainer.optimizers, self._indices)
        if not takes_part(optimizers, is_main=trainer.is_global_zero):
            return
        schedule = _schedule(trainer)
        options = schedule | default_on_error(self._options, optimizers)
        self._counts_epochs = options.get("steps_per_epoch") is not None
        self._losses = []
        self._optimizers = optimizers
        resumption = self._resumption(trainer, schedule.get("reference_every"))
        if "report_to" in options:
            self._loggers = (
                LightningLoggers(trainer.loggers) if trainer.loggers else None
            )
            sinks = [] if self._loggers is None else [self._loggers]
            options["report_to"] = with_trainer(options["report_to"], sinks)
        self._recorder = Recorder(
            numbered(self._path, self._attempt + (not resumption)),
            pl_module,
            optimizers,
            **resumption,
            **options,
        )
        self._attempt += not resumption

    def _resumption(self, trainer: Any, per_epoch: int | None) -> dict[str, Any]:
        """Return the options that resume the recording, if training is resumed."""
        if trainer.global_step == 0:
            self._epoch = None
            return {}
        if self._state:
            state = self._state["recorder"]
            self._epoch = self._state["epoch"]
            self._attempt = attempt_of(self._path, state)
            return {"resume": state}
        self._attempt = self._attempt or 1
        if len(trainer.optimizers) > 1:
            raise ValueError(
                "The checkpoint holds no state of this recording, and with "
                f"{len(trainer.optimizers)} optimizers the trainer's `global_step` = "
                f"{trainer.global_step} does not determine the number of recorded steps. "
                "Resume from a checkpoint that was saved with this callback."
            )
        is_within_epoch = per_epoch is not None and trainer.global_step % per_epoch > 0
        self._epoch = trainer.current_epoch if is_within_epoch else None
        return {"resume": True, "step": trainer.global_step}

    @tolerant
    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin an epoch with its first batch, unless the recorder itself counts epochs."""
        # A resumed epoch may have begun before the checkpoint; no hook tells its start then.
        is_new = trainer.current_epoch != self._epoch
        if self._recorder is not None and not self._counts_epochs and is_new:
            self._recorder.start_epoch()
        self._epoch = trainer.current_epoch

    def on_train_batch_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Give reports to loggers that only the training thread may call."""
        if self._loggers is not None:
            self._loggers.pass_on()

    @tolerant
    def on_before_backward(
        self,
        trainer: Any,
        pl_module: Any,
        loss: Tensor,
    ) -> None:
        """Keep the loss of a batch for the row of its step."""
        if self._recorder is not None and pl_module.automatic_optimization:
            self._losses.append(loss.detach())

    @tolerant
    def on_before_optimizer_step(
        self,
        trainer: Any,
        pl_module: Any,
        optimizer: Optimizer,
    ) -> None:
        """Log the loss and the metrics of a step when its gradients are complete.

        Raises
        ------
        KeyError
            If one of the metrics to record has not been logged.
        """
        if self._recorder is None or not any(o is optimizer for o in self._optimizers):
            return
        if self._losses:
            self._recorder.log(loss=_mean_loss(self._losses, trainer))
            self._losses = []
        if self._log:
            metrics = trainer.callback_metrics
            if missing := sorted(set(self._log) - metrics.keys()):
                raise KeyError(
                    f"No metrics {missing} were logged before the optimizer step; found "
                    f"{sorted(metrics)}. In training_step, call "
                    f"self.log({missing[0]!r}, value, on_step=True)."
                )
            self._recorder.log(**{name: metrics[name] for name in self._log})
        if self._before_clipping:
            self._recorder.take_gradient()

    @tolerant
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the recording."""
        if self._recorder is not None:
            # Checkpoints may be saved after training.
            self._state = self.state_dict()
            if (recorder := self._release()) is not None:
                recorder.close()
                self.on_train_batch_end()

    @tolerant
    def on_exception(
        self,
        trainer: Any,
        pl_module: Any,
        exception: BaseException,
    ) -> None:
        """Close the recording as failed."""
        self._state = {}
        if (recorder := self._release()) is not None:
            recorder.__exit__(type(exception), exception, exception.__traceback__)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the recording for a checkpoint.

        Returns
        -------
        dict
            The state; empty if nothing is recorded.
        """
        if self._recorder is None:
            return self._state
        try:
            return {"recorder": self._recorder.state_dict(), "epoch": self._epoch}
        except Exception as error:
            if self._raises():
                raise
            self._release()
            warn_of(error)
            return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep the state that a checkpoint holds, until the recording resumes from it.

        Parameters
        ----------
        state_dict : mapping
            The result of `state_dict`.
        """
        self._state = dict(state_dict)


def _choose(
    optimizers: Sequence[Optimizer], indices: Sequence[int] | None
) -> list[Optimizer]:
    """Return the optimizers to record."""
    if indices is None and len(optimizers) == 1:
        indices = [0]
    if not indices or not all(0 <= i < len(optimizers) for i in indices):
        raise ValueError(
            f"The trainer has {len(optimizers)} optimizers, and `optimizer` is {indices}. "
            "Give TrajectoryCallback the index of the optimizer to record, counted from 0."
        )
    return [optimizers[i] for i in indices]


def _schedule(trainer: Any) -> dict[str, int]:
    """Return the number of steps in a window and in the run as options, if known."""
    # Epochs may vary in length, so the trainer begins them. A window is as long as the first
    # epoch, unless this is short. Under manual optimization, one step per batch is assumed.
    schedule, total = {}, trainer.estimated_stepping_batches
    if isfinite(total) and total > 0 and not trainer.reload_dataloaders_every_n_epochs:
        schedule["total_steps"] = int(total)
    n_batches = trainer.num_training_batches
    if isfinite(n_batches) and n_batches > 0:
        n_steps = ceil(n_batches / trainer.accumulate_grad_batches)
        if (length := epoch_as_window(n_steps)) is not None:
            schedule["reference_every"] = length
    return schedule


def _scaler(trainer: Any) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _mean_loss(losses: Sequence[Tensor], trainer: Any) -> Tensor:
    """Average the losses of one step, without the factors that Lightning and the scaler apply."""
    n_batches: int = trainer.accumulate_grad_batches
    loss = losses[0] if len(losses) == 1 else torch.stack(list(losses)).mean()
    if n_batches > 1:
        loss = loss * n_batches
    if (scaler := _scaler(trainer)) is None:
        return loss
    # This waits for the device, as the scaler itself will do in this step.
    scale: float = scaler.get_scale()
    return loss / scale
