"""Means over runs that differ in their seeds, and differences of such means."""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

FloatArray = npt.NDArray[np.floating[Any]]

CONFIDENCE: Final = 0.95
"""Probability with which an interval holds the difference of two configurations."""


def over_runs(values: FloatArray, stderrs: FloatArray) -> tuple[FloatArray, ...]:
    """Return the mean over runs, (..., run), its standard error and the number of runs."""
    # The spread of the runs has the errors of their estimates in it. Two or three runs may
    # agree by chance, so the error is not smaller than that of the estimates. NaN is left out.
    is_known = ~np.isnan(values)
    n = is_known.sum(-1).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(is_known, values, 0.0).sum(-1) / n
        deviations = np.where(is_known, values - mean[..., None], 0.0)
        spread = np.where(n > 1, (deviations**2).sum(-1) / (n - 1) / n, np.nan)
        own = (np.where(is_known, stderrs, 0.0) ** 2).sum(-1) / n**2
    return mean, np.sqrt(np.fmax(spread, own)), n


class Difference(NamedTuple):
    """The difference of two means, and what Welch's t says of it; all shapes agree."""

    value: FloatArray
    stderr: FloatArray
    dof: FloatArray  # degrees of freedom, NaN unless both means have two runs or more
    low: (
        FloatArray  # interval that holds the difference with the probability CONFIDENCE
    )
    high: FloatArray


def welch(
    mean: FloatArray,
    stderr: FloatArray,
    n: FloatArray,
    first_mean: FloatArray,
    first_stderr: FloatArray,
    first_n: FloatArray,
) -> Difference:
    """Subtract a mean over runs from another one; the variances of the two may differ."""
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = stderr**2, first_stderr**2
        counts = np.where(n > 1, n, np.nan), np.where(first_n > 1, first_n, np.nan)
        terms = [v**2 / (m - 1) for v, m in zip(parts, counts, strict=True)]
        dof = sum(parts) ** 2 / sum(terms)
        # Equal runs have no spread: any number of degrees of freedom gives the same interval.
        dof = np.where(sum(parts) > 0, dof, sum(counts) - 2)
        value = mean - first_mean
        error = np.sqrt(sum(parts))
        half = stdtrit(dof, (1 + CONFIDENCE) / 2) * error
    return Difference(value, error, dof, value - half, value + half)


def verdicts(low: FloatArray, high: FloatArray) -> npt.NDArray[np.object_]:
    """Return in words on which side of 0 an interval lies."""
    found = np.full(np.shape(low), "inconclusive", object)
    found[low > 0] = "higher"
    found[high < 0] = "lower"
    found[np.isnan(low) | np.isnan(high)] = "unknown"
    return found
