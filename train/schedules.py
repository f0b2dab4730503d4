"""Learning rates and weight decays from step to step."""

import math
from typing import Final

from train.settings import Training

RISE: Final = 0.3
"""Share of the steps of one cycle in which the learning rate rises."""

FIRST: Final = 1 / 25
LAST: Final = 1 / 25 / 1e4
"""Of the largest learning rate of one cycle: where it begins, and where it ends."""


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

    Notes
    -----
    ``"one-cycle"`` is that of torch's ``OneCycleLR``, with its defaults, after L. Smith,
    N. Topin, "Super-Convergence", 2017, arXiv 1708.07120: two halves of a cosine. Momenta
    are left alone. ``"decaying"`` is ``lr (1 + k)^(-3/4)`` after k steps, as in F. Hübler
    et al., "Parameter-Agnostic Optimization under Relaxed Smoothness", AISTATS 2024, arXiv
    2311.03252, for normalised SGD with momentum.
    """
    warmup = training.warmup_epochs * steps_per_epoch
    if step < warmup:
        return training.lr * (step + 1) / warmup
    done, total = step - warmup, training.epochs * steps_per_epoch - warmup
    if training.schedule == "cosine":
        return training.lr * _between(1, 0, done / max(1, total))
    if training.schedule == "one-cycle":
        return training.lr * _one_cycle(done, total)
    if training.schedule == "decaying":
        return training.lr / float((1 + done) ** 0.75)
    if _is_tenth(training, step, steps_per_epoch):
        return training.lr / 10
    return training.lr


def _one_cycle(done: int, total: int) -> float:
    """Return the share of the largest learning rate."""
    peak = RISE * total - 1
    if done <= peak:
        return _between(FIRST, 1, done / peak)
    return _between(1, LAST, (done - peak) / (total - 1 - peak))


def _between(start: float, end: float, share: float) -> float:
    """Go a share of the way from start to end, along half of a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


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
