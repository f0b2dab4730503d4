"""Inner products of whole iterates of several runs, one part of the parameters per task."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from dask.delayed import Delayed

from analyzers._engine.slices import SEGMENT, slices
from analyzers._engine.tasks import PART, task
from analyzers.comparison.stored_iterates import StoredIterate, read_iterates
from trajstore.format.layout import BLOCK
from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]

VALUES: Final = 1 << 26
"""Largest number of values that a task holds: iterates times elements."""


def gram_task(
    runs: Sequence[Run], iterates: Sequence[Sequence[StoredIterate]]
) -> Delayed:
    """Return the task of all inner products <x_i - o, x_j - o>, float64 (iterate, iterate)."""
    # The origin o is near the first iterate of the first run, so that little cancels in
    # differences of iterates. Products with an iterate that is damaged or not finite are NaN.
    n = sum(map(len, iterates))
    length = max(BLOCK, min(PART, VALUES // n // BLOCK * BLOCK))
    parts = [
        task(partial(gram_of_part, runs, iterates, elements))
        for elements in slices(slice(0, runs[0].layout.size), length)
    ]
    return task(add_up, parts)


def gram_of_part(
    runs: Sequence[Run],
    iterates: Sequence[Sequence[StoredIterate]],
    elements: slice,
) -> FloatArray:
    """Sum the products over `elements`, which covers whole blocks."""
    n, length = sum(map(len, iterates)), elements.stop - elements.start
    vectors, origin, i = np.empty((n, length), np.float32), None, 0
    for run, listed in zip(runs, iterates, strict=True):
        for values in read_iterates(run, listed, elements):
            if origin is None:
                origin = np.where(np.isfinite(values), values, np.float32(0))
            with np.errstate(invalid="ignore", over="ignore"):
                np.subtract(values, origin, out=vectors[i])
            i += 1
    total = np.zeros((n, n))
    with np.errstate(invalid="ignore", over="ignore"):
        for part in slices(slice(0, length), SEGMENT):
            values = vectors[:, part].astype(np.float64)
            total += values @ values.T
    return total


def add_up(parts: Sequence[FloatArray]) -> FloatArray:
    """Return the sum of the parts."""
    total: FloatArray = np.sum(parts, axis=0)
    return total
