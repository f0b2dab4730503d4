"""Find the steps at the target itself, where x - x* is only the rounding of an anchor."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.geometry import Quantity
from trajstore.reading.run import Run
from trajstore.reading.target import Target

FloatArray = npt.NDArray[np.floating[Any]]
IsAt = npt.NDArray[np.bool_]

AT_TARGET_KEPT: Final = ("distance", "lolr")
"""Quantities that are not divided by the distance: they are nearly 0 at the target itself."""


def step_of_target(run: Run, target: Target) -> int | None:
    """Return the step whose iterate is the target, None if no step of the run starts there."""
    if target.at is None or target.at[0].location != run.location:
        return None
    step = int(target.at[1])
    return step if step in run.stored.step_numbers else None


def is_at(run: Run, steps: slice, step: int | None) -> IsAt:
    """Return which of the rows `steps` start at the target, (step,)."""
    numbers = run.stored.step_numbers[steps]
    return numbers == step if step is not None else np.zeros(len(numbers), bool)


def without_target(found: dict[str, Quantity], at: IsAt) -> dict[str, Quantity]:
    """Make quantities unknown in the steps that start at the target, `at` (step,)."""
    if not at.any():
        return found
    [ndim] = {q.value.ndim for q in found.values()}
    rows = at.reshape(-1, *[1] * (ndim - 1))
    return {
        name: q
        if name in AT_TARGET_KEPT
        else Quantity(
            np.where(rows, np.nan, q.value),
            np.where(rows, 0.0, q.by_product),
            np.where(rows, 0.0, q.by_distance),
        )
        for name, q in found.items()
    }
