"""Schedules of the learning rate and the weight decay."""

import math
from typing import Final

from train.settings import Training

RISE_FRACTION: Final = 0.3
"""Fraction of the steps of a cycle during which the learning rate rises."""

INITIAL_FRACTION: Final = 1 / 25
FINAL_FRACTION: Final = 1 / 25 / 1e4
"""First and last learning rates of a cycle, relative to the largest learning rate."""


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of an optimizer step, counted from 0."""
    planned = training.epochs * steps_per_epoch
    warmup = training.warmup_epochs * steps_per_epoch
    warmup = warmup or round(training.warmup_fraction * planned)
    if step < warmup:
        return training.lr * (step + 1) / warmup
    done, total = step - warmup, planned - warmup
    if training.schedule == "cosine":
        return _anneal(training.lr, training.final_lr, done / max(1, total))
    if training.schedule == "one-cycle":
        return training.lr * _one_cycle(done, total)
    if training.schedule == "decaying":
        # For normalised SGD with momentum: F. Hübler et al., "Parameter-Agnostic
        # Optimization under Relaxed Smoothness", AISTATS 2024, arXiv 2311.03252.
        return training.lr / float((1 + done) ** 0.75)
    if _is_divided_by_ten(training, step, steps_per_epoch):
        return training.lr / 10
    return training.lr


def _one_cycle(done: int, total: int) -> float:
    """Return the learning rate of torch's ``OneCycleLR`` relative to the largest."""
    # L. Smith, N. Topin, "Super-Convergence", 2017, arXiv 1708.07120: two halves of a
    # cosine, with the defaults of ``OneCycleLR``, but without a cycle of the momentum.
    peak = RISE_FRACTION * total - 1
    if done <= peak:
        return _anneal(INITIAL_FRACTION, 1, done / peak)
    return _anneal(1, FINAL_FRACTION, (done - peak) / (total - 1 - peak))


def _anneal(start: float, end: float, fraction: float) -> float:
    """Interpolate from start to end along half of a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2


def weight_decay(training: Training, step: int, steps_per_epoch: int) -> float:
    """Return the weight decay of an optimizer step, counted from 0."""
    # "No Wrong Turns" (arXiv 2306.11922, appendix A.4) divides the weight decay by ten in
    # the last epoch of segmentation runs; its published code does not.
    if not training.as_published and _is_divided_by_ten(
        training, step, steps_per_epoch
    ):
        return training.weight_decay / 10
    return training.weight_decay


def _is_divided_by_ten(training: Training, step: int, steps_per_epoch: int) -> bool:
    is_last_epoch = step >= (training.epochs - 1) * steps_per_epoch
    return training.schedule == "last-epoch-tenth" and is_last_epoch
