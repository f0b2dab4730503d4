"""Means of the geometry over epochs, from sums over parts of the steps.

Arrays have the steps as their first axis; the steps of a part lie in at most E epochs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.geometry import (
    COVARIANCE,
    DISTANCE_LIMIT,
    FROM_DISTANCE,
    QUANTITIES,
)

FloatArray = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.intp]

SUFFIXES: Final = ("", "_stderr", FROM_DISTANCE, COVARIANCE)

NAMES: Final = tuple(f"{name}{suffix}" for name in QUANTITIES for suffix in SUFFIXES)
"""Variables that the means are computed from."""

DIVIDED: Final = ("gamma", "rsi", "eb")
"""Quantities that are divided by the distance."""

SUMS: Final = ("n", "sum", "own", "shared", "n_shared", "together")
"""Sums over the steps of an epoch, for each quantity."""

COUNTS: Final = {
    "n_steps": "number of averaged steps",
    "n_missing": "number of steps without a value",
    "n_imprecise": "number of steps whose distance is imprecise",
}
"""Descriptions of the counts of steps in an epoch, by name."""

MEANS: Final = ("", "_stderr", "_min", "_max")
"""Suffixes of the results for each quantity."""

N_SUMS: Final = len(QUANTITIES) * len(SUMS) + len(COUNTS)
N_PARTIAL: Final = N_SUMS + 2 * len(QUANTITIES)
N_RESULTS: Final = len(QUANTITIES) * len(MEANS) + len(COUNTS)


def partial_sums(codes: Codes, *variables: FloatArray) -> FloatArray:
    """Return sums, counts and extremes over the steps of each epoch, (N_PARTIAL, E, ...)."""
    # The variables are those of NAMES, (step, ...), and `codes` numbers the epochs, (step,).
    # The order of the results: the counts and sums, then the minima, then the maxima.
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    if len(order) and (order[:-1] > order[1:]).any():
        variables = tuple(variable[order] for variable in variables)
    given = dict(zip(NAMES, variables, strict=True))

    def sums(values: npt.NDArray[Any]) -> FloatArray:
        """Return sums over epochs, which leave out NaN."""
        counted = np.where(np.isnan(values), 0, values)
        return np.add.reduceat(counted, starts, axis=0, dtype=np.float64)

    with np.errstate(invalid="ignore"):
        # The relative error is undefined at x* itself.
        distance = np.where(given["distance"] > 0, given["distance"], np.nan)
        is_imprecise = given["distance_stderr"] > DISTANCE_LIMIT * distance
    added, lowest, highest = [], [], []
    for name in QUANTITIES:
        value, stderr = given[name], given[f"{name}_stderr"]
        if name in DIVIDED:
            value = np.where(is_imprecise, np.nan, value)
        is_known = ~np.isnan(value)
        shared = np.where(is_known, given[f"{name}{FROM_DISTANCE}"], np.nan)
        own = np.maximum(np.where(is_known, stderr, np.nan) ** 2 - shared**2, 0)
        together = np.where(is_known, given[f"{name}{COVARIANCE}"], np.nan)
        added += [sums(is_known), sums(value), sums(own), sums(shared)]
        added += [sums(~np.isnan(shared)), sums(together)]
        lowest.append(np.fmin.reduceat(value, starts, axis=0))
        highest.append(np.fmax.reduceat(value, starts, axis=0))
    is_finite = ~np.isnan(given["gamma"])
    added += [sums(is_finite), sums(~is_finite), sums(is_finite & is_imprecise)]
    return np.stack([*added, *lowest, *highest])


def combined_sums(
    parts: FloatArray, codes: Sequence[Codes], n_epochs: int
) -> FloatArray:
    """Combine partial sums, (N_PARTIAL, part of an epoch, ...), by the codes of the epochs."""
    where = np.concatenate(codes)
    total = np.zeros((N_PARTIAL, n_epochs, *parts.shape[2:]))
    total[N_SUMS:] = np.nan
    middle = N_SUMS + len(QUANTITIES)
    for i, epoch in enumerate(where):
        total[:N_SUMS, epoch] += parts[:N_SUMS, i]
        for add, of in (
            (np.fmin, slice(N_SUMS, middle)),
            (np.fmax, slice(middle, None)),
        ):
            total[of, epoch] = add(total[of, epoch], parts[of, i])
    return total


def means(total: FloatArray, is_whole: npt.NDArray[np.bool_]) -> FloatArray:
    """Return `MEANS` of each quantity, then `COUNTS`, (result, epoch, ...)."""
    # `total` has the layout of `partial_sums`, and `is_whole`, (epoch,), selects the
    # covariances; `analyzers.epoch_means` states the formulas.
    found = []
    is_whole = is_whole.reshape(-1, *[1] * (total.ndim - 2))
    for q in range(len(QUANTITIES)):
        i = len(SUMS) * q
        n, total_value, own, shared, n_shared, together = total[i : i + len(SUMS)]
        with np.errstate(invalid="ignore", divide="ignore"):
            squared = np.where(n > 0, n**2, np.nan)
            apart = own / squared + (shared / n_shared) ** 2
            # Rounding may push the variance of a sum that is known below 0.
            exact = np.maximum(together, 0) / squared
            stderr = np.sqrt(np.where(is_whole, exact, apart))
            mean = total_value / n
        lowest, highest = total[N_SUMS + q], total[N_SUMS + len(QUANTITIES) + q]
        found += [mean, stderr, lowest, highest]
    return np.stack([*found, *total[N_SUMS - len(COUNTS) : N_SUMS]])


def by_name(results: Any) -> Mapping[str, Any]:
    """Return the results of `means` by the names of variables; lazy results stay lazy."""
    names = [f"{name}{suffix}" for name in QUANTITIES for suffix in MEANS]
    return {name: results[i] for i, name in enumerate([*names, *COUNTS])}
