"""A callback that records the training of Lightning's ``Trainer``."""

from lightning.pytorch import Callback

from trajstore.integrations.lightning_hooks import LightningHooks


class TrajectoryCallback(LightningHooks, Callback):
    """Record every optimizer step of ``Trainer.fit`` into a trajectory store.

    Row k describes optimizer step k. Under automatic optimization, its ``loss`` is the loss
    that `training_step` returned, averaged over accumulated batches; with several processes, it
    is the loss of the first process. Gradients are recorded as the optimizer finds them:
    accumulated, unscaled and clipped.

    Recording begins and ends with training. Afterwards the status of the store is complete,
    or failed if `fit` raised an exception. Checkpoints contain the state of the recording;
    ``fit(ckpt_path=...)`` resumes it.

    Parameters
    ----------
    path : str or os.PathLike
        Path of the store, see `trajstore.Recorder`.
    log : sequence of str, default: ()
        Names of metrics to record with every step; ``self.log(..., on_step=True)`` must have
        logged them before the step.
    optimizer : int or sequence of int, optional
        Index of the optimizer to record, in the order of ``configure_optimizers``; required if
        there are several optimizers. Give a sequence for optimizers that step together and are
        recorded as one optimizer, and make a callback for each remaining optimizer.
    before_clipping : bool, default: False
        Record gradients before ``gradient_clip_val`` is applied. The norm of the gradient
        that the step finds is then recorded as ``step_grad_norm``.
    **options : Any
        Other options of `trajstore.Recorder`, except `resume` and `step`. Epochs begin when the
        trainer begins them, however long they are. By default, `total_steps` and
        `reference_every` are taken from the trainer; under manual optimization, they assume one
        step per batch. `report_to` may also be ``"trainer"``, for the trainer's own loggers. The
        default of `on_error` is ``"warn"``: an error of the recording ends
        the recording, and training continues. Sharded recordings raise errors.

    Raises
    ------
    TypeError
        If `resume` or `step` is among the options.

    Notes
    -----
    If training begins again at step 0, for example with a smaller batch after running out of
    memory, it is recorded to another store: ``run-2.zarr``, then ``run-3.zarr`` and so on.

    A ``fast_dev_run`` is not recorded. Training may also resume from a checkpoint that was
    saved without this callback; the recording then resumes as with
    ``Recorder(resume=True, step=...)``.

    For trainers of the package ``pytorch_lightning``, use the callback of
    `trajstore.integrations.pytorch_lightning`.
    """
