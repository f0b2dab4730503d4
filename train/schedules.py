"""Learning rates and weight decays from step to step."""

import math

from train.training import Training


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step.

    Parameters
    ----------
    training : Training
        Its schedule, largest learning rate, warm-up and epochs.
    step : int
        Which optimizer step, from 0.
    steps_per_epoch : int
        Steps in an epoch.

    Returns
    -------
    float
        Rises linearly to the largest in the warm-up, and follows the schedule then.
    """
    warmup = training.warmup_epochs * steps_per_epoch
    if step < warmup:
        return training.lr * (step + 1) / warmup
    if training.schedule == "cosine":
        total = training.epochs * steps_per_epoch
        done = (step - warmup) / max(1, total - warmup)
        return training.lr * (1 + math.cos(math.pi * done)) / 2
    if _is_tenth(training, step, steps_per_epoch):
        return training.lr / 10
    return training.lr


def weight_decay(training: Training, step: int, steps_per_epoch: int) -> float:
    """Return the weight decay of a step.

    The paper divides it by ten for the last epoch of segmentation (appendix A.4); its
    published code does not.

    Parameters
    ----------
    training : Training
        Its schedule, weight decay and epochs, and whether to do as published.
    step : int
        Which optimizer step, from 0.
    steps_per_epoch : int
        Steps in an epoch.

    Returns
    -------
    float
        Constant but for the schedule ``"last-epoch-tenth"``.
    """
    if not training.as_published and _is_tenth(training, step, steps_per_epoch):
        return training.weight_decay / 10
    return training.weight_decay


def _is_tenth(training: Training, step: int, steps_per_epoch: int) -> bool:
    is_last = step >= (training.epochs - 1) * steps_per_epoch
    return training.schedule == "last-epoch-tenth" and is_last
