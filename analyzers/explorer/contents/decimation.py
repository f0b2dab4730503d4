"""Reduce curves of many steps to as many points as a page can hold."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


class Buckets(NamedTuple):
    """Consecutive steps in groups of equal size; the last group may be smaller."""

    n_steps: int
    size: int  # steps in a bucket

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Return the first step of every bucket, int64 (bucket,)."""
        return np.arange(0, self.n_steps, self.size)


def buckets(n_steps: int, most: int) -> Buckets:
    """Divide steps into at most `most` buckets of equal size."""
    return Buckets(n_steps, max(1, -(-n_steps // most)))


def extremes(values: Floats, groups: Buckets) -> tuple[Floats, Floats]:
    """Return the smallest and largest value of every bucket, float (bucket,), ignoring NaN."""
    if groups.size == 1:
        return values, values
    low: Floats = np.fmin.reduceat(values, groups.starts)
    high: Floats = np.fmax.reduceat(values, groups.starts)
    return low, high


def root_mean_squares(values: Floats, groups: Buckets) -> npt.NDArray[np.float32]:
    """Return the root mean square of every bucket, float32 (bucket,), ignoring NaN."""
    if groups.size == 1:
        return values.astype(np.float32)
    squares = means_of_groups(values**2, np.arange(len(values)) // groups.size)
    return np.sqrt(squares).astype(np.float32)


def means_of_groups(values: Floats, labels: npt.NDArray[Any]) -> Floats:
    """Return means over steps with equal labels, float64 (label, ...), ignoring NaN."""
    # `values` is float (step, ...), and `labels` is int (step,), ascending.
    if not len(labels):
        return np.empty((0, *values.shape[1:]))
    starts = np.flatnonzero(np.diff(labels, prepend=labels[0] - 1))
    known = np.isfinite(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts, axis=0, dtype=float)
    counts = np.add.reduceat(known, starts, axis=0, dtype=np.int64)
    means: Floats = np.full(sums.shape, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means
