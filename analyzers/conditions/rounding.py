"""Rounding of losses: which steps of a run that has converged say nothing but rounding.

A loss is a rounded number, and rounding in the sum over examples is a part of it. Near the end of a
run that converges, differences of losses, and products of gradients with x - x*, are what rounding
leaves. One rule holds for all conditions: the error of a loss l is taken to be `LOSS_ROUNDINGS`
machine epsilons of l, and what is not at least `LEAST_RATIO` times as large is not used.
"""

from functools import reduce
from operator import and_
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]

LOSS_ROUNDINGS: Final = 10.0
"""Error that rounding leaves in a loss, in machine epsilons of the loss."""

LEAST_RATIO: Final = 100.0
"""Least ratio of a used difference of losses to its error from rounding, which is then 1 % at most."""


def loss_epsilon(run: Run, losses: FloatArray) -> float:
    """Return the machine epsilon of the type that losses of a run were computed in."""
    # Float32 if the parameters are float32, or if all losses are numbers of float32.
    known = losses[np.isfinite(losses)]
    is_single = not run.spec.float64
    if not is_single:
        with np.errstate(over="ignore", under="ignore"):
            is_single = bool((known.astype(np.float32) == known).all())
    return float(np.finfo(np.float32 if is_single else np.float64).eps)


def loss_error(epsilon: float, *losses: npt.ArrayLike) -> FloatArray:
    """Return the error that rounding leaves in the difference of losses, (step,)."""
    largest: FloatArray = reduce(np.maximum, [np.abs(loss) for loss in losses])
    return LOSS_ROUNDINGS * epsilon * largest


def gradient_error(epsilon: float, norms: FloatArray) -> float:
    """Return the norm below which a gradient of a run may be nothing but rounding."""
    largest = norms[np.isfinite(norms)].max(initial=0.0)
    return float(LEAST_RATIO * LOSS_ROUNDINGS * epsilon * largest)


def is_rounding(error: Any, *values: Any) -> Any:
    """Return where all of some values, each (step,), are too near to the error from rounding."""
    # A value that is not known is not rounding, and neither is 0 of losses of 0. Values may be lazy.
    are_near = [abs(value) < LEAST_RATIO * error for value in values]
    return reduce(and_, are_near)


def rule(epsilon: float) -> str:
    """Describe what is left out, for the attributes of results."""
    return (
        f"losses are taken to be rounded by {LOSS_ROUNDINGS * epsilon:.1e} of their value; what is "
        f"not {LEAST_RATIO:g} times as large is left out"
    )
