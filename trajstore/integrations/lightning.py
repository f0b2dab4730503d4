"""Record what a ``Trainer`` of Lightning does, with a callback."""

from lightning.pytorch import Callback

from trajstore.integrations.lightning_hooks import LightningHooks


class TrajectoryCallback(LightningHooks, Callback):
    """Records every optimizer step of ``Trainer.fit`` into a trajectory store.

    Row k is the k-th optimizer step. Under automatic optimization its ``loss`` is the
    loss that `training_step` returned, the mean over accumulated batches; in a
    distributed training, of the first process. Gradients are recorded as the optimizer
    finds them: accumulated, unscaled and clipped.

    Recording begins where training does, and ends with it: as complete, or as failed
    where `fit` was left by an exception. Checkpoints hold what is needed to go on;
    ``fit(ckpt_path=...)`` resumes the recording with the training.

    Parameters
    ----------
    path : str or os.PathLike
        Of the store, as `trajstore.Recorder` takes it.
    log : sequence of str, default: ()
        Names of metrics that are recorded with every step, of those that
        ``self.log(..., on_step=True)`` gave before the step.
    optimizer : int or sequence of int, optional
        Which of several optimizers is recorded, as numbered by ``configure_optimizers``.
        Those in a sequence are recorded as one, as they step together; for one that steps
        for itself use a callback of its own.
    before_clipping : bool, default: False
        Record gradients as they are ahead of ``gradient_clip_val``; the norm of what
        the step finds is then recorded as ``step_grad_norm``.
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
    Nothing is recorded of a ``fast_dev_run``. A checkpoint that was saved without this
    callback is resumed from, too, as by ``Recorder(resume=True, step=...)``.

    Trainers of the package ``pytorch_lightning`` take the callback of
    `trajstore.integrations.pytorch_lightning`.
    """
