"""Means of the geometry over epochs, from sums over parts of the steps.

Arrays have the steps as their first axis; the steps of a part lie in at most E epochs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

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

EXCESS: Final = "excess"
"""Name of gamma minus that of a null model, which is averaged alone."""

IMPRECISE: Final = "is_imprecise"
"""Mark of steps of the excess that are left out because a distance is imprecise."""

DIVIDED: Final = ("gamma", "rsi", "eb", EXCESS)
"""Quantities that are divided by the distance."""

N_AVERAGED: Final = "_n_steps"
"""Suffix of the number of steps in the mean of a quantity."""

SUMS: Final = ("n", "sum", "own", "shared", "together")
"""Sums over the steps of an epoch, for each quantity."""

COUNTS: Final = {
    "n_steps": "number of steps with a value of gamma",
    "n_missing": "number of steps without a value of gamma",
    "n_imprecise": "number of steps whose distance or mean gamma is imprecise",
}
"""Descriptions of the counts of steps in an epoch, by name."""

IMPRECISE_COUNT: Final = list(COUNTS).index("n_imprecise")

MEANS: Final = ("", "_stderr", "_min", "_max", N_AVERAGED)
"""Suffixes of the results for each quantity."""


COSINES: Final = ("gamma", EXCESS)
"""Quantities of which a standard error above `MAX_ERROR` leaves nothing."""

MAX_ERROR: Final = 1.0
"""Largest standard error of a mean cosine that is known."""

MAX_LEFT_OUT: Final = 0.5
"""Largest share of imprecise steps in a mean that is known."""

LARGEST_CHANGE: Final = 2.0
"""Largest difference of two cosines."""


class Averaged(NamedTuple):
    """Names of the quantities that are averaged together."""

    quantities: tuple[str, ...]
    needed: tuple[str, ...]  # variables that the means are computed from

    @property
    def n_sums(self) -> int:
        """Number of sums and counts."""
        return len(self.quantities) * len(SUMS) + len(COUNTS)

    @property
    def n_partial(self) -> int:
        """Number of sums, counts and extremes."""
        return self.n_sums + 2 * len(self.quantities)

    @property
    def n_results(self) -> int:
        """Number of means, errors, extremes and counts."""
        return len(self.quantities) * len(MEANS) + len(COUNTS)


def _needed(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}{suffix}" for name in names for suffix in SUFFIXES)


GEOMETRY: Final = Averaged(QUANTITIES, _needed(*QUANTITIES))
EXCESSES: Final = Averaged((EXCESS,), (*_needed(EXCESS), IMPRECISE))


def partial_sums(
    averaged: Averaged, codes: Codes, *variables: FloatArray
) -> FloatArray:
    """Return sums, counts and extremes over the steps of each epoch, (partial, E, ...)."""
    # The variables are the needed ones, (step, ...), and `codes` numbers the epochs, (step,).
    # The order of the results: the counts and sums, then the minima, then the maxima.
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    if len(order) and (order[:-1] > order[1:]).any():
        variables = tuple(variable[order] for variable in variables)
    given = dict(zip(averaged.needed, variables, strict=True))

    def sums(
        values: npt.NDArray[Any], where: npt.NDArray[np.bool_] | bool = True
    ) -> FloatArray:
        """Return sums over epochs; one value that is not known leaves its sum unknown."""
        counted = np.where(where, values, 0)
        return np.add.reduceat(counted, starts, axis=0, dtype=np.float64)

    if IMPRECISE in given:
        is_imprecise = given[IMPRECISE] > 0
    else:
        is_imprecise = has_imprecise(given["distance"], given["distance_stderr"])
    added, lowest, highest = [], [], []
    for name in averaged.quantities:
        value, stderr = given[name], given[f"{name}_stderr"]
        if name in DIVIDED:
            value = np.where(is_imprecise, np.nan, value)
        is_known = ~np.isnan(value)
        shared = given[f"{name}{FROM_DISTANCE}"]
        own = np.maximum(stderr**2 - shared**2, 0)
        together = np.where(np.isnan(stderr), np.nan, given[f"{name}{COVARIANCE}"])
        added += [sums(is_known), *(sums(v, is_known) for v in (value, own, shared))]
        added += [sums(together, is_known)]
        lowest.append(np.fmin.reduceat(value, starts, axis=0))
        highest.append(np.fmax.reduceat(value, starts, axis=0))
    is_finite = ~np.isnan(given[averaged.quantities[0]])
    added += [sums(is_finite), sums(~is_finite), sums(is_finite & is_imprecise)]
    return np.stack([*added, *lowest, *highest])


def has_imprecise(distance: FloatArray, stderr: FloatArray) -> npt.NDArray[np.bool_]:
    """Return where the relative error of a distance is too large for first-order errors."""
    with np.errstate(invalid="ignore"):
        # The relative error is undefined at x* itself.
        known = np.where(distance > 0, distance, np.nan)
        is_imprecise: npt.NDArray[np.bool_] = stderr > DISTANCE_LIMIT * known
    return is_imprecise


def combined_sums(
    averaged: Averaged, parts: FloatArray, codes: Sequence[Codes], n_epochs: int
) -> FloatArray:
    """Combine partial sums, (partial, part of an epoch, ...), by the codes of the epochs."""
    where = np.concatenate(codes)
    n_sums = averaged.n_sums
    total = np.zeros((averaged.n_partial, n_epochs, *parts.shape[2:]))
    total[n_sums:] = np.nan
    middle = n_sums + len(averaged.quantities)
    for i, epoch in enumerate(where):
        total[:n_sums, epoch] += parts[:n_sums, i]
        for add, of in (
            (np.fmin, slice(n_sums, middle)),
            (np.fmax, slice(middle, None)),
        ):
            total[of, epoch] = add(total[of, epoch], parts[of, i])
    return total


def means(
    averaged: Averaged,
    total: FloatArray,
    is_whole: npt.NDArray[np.bool_],
    starts: Codes,
) -> FloatArray:
    """Return `MEANS` of each quantity, then `COUNTS`, (result, mean, ...)."""
    # `total` has the layout of `partial_sums`, for groups of steps whose errors are taken as
    # independent. `is_whole`, (group,), selects the covariances; `starts` are the first groups of
    # the means, (mean,). `analyzers.epoch_means` states the formulas.
    found = []

    def add(values: FloatArray) -> FloatArray:
        result: FloatArray = np.add.reduceat(values, starts, axis=0)
        return result

    counts = np.add.reduceat(
        total[averaged.n_sums - len(COUNTS) : averaged.n_sums], starts, axis=1
    )
    n_left_out = counts[IMPRECISE_COUNT].copy()
    is_whole = is_whole.reshape(-1, *[1] * (total.ndim - 2))
    n_quantities, n_sums = len(averaged.quantities), averaged.n_sums
    for q in range(n_quantities):
        i = len(SUMS) * q
        n, total_value, own, shared, together = total[i : i + len(SUMS)]
        with np.errstate(invalid="ignore", divide="ignore"):
            apart = own + shared**2
            # Rounding may push the variance of a sum that is known below 0.
            exact = np.maximum(together, 0)
            count = add(n)
            stderr = np.sqrt(add(np.where(is_whole, exact, apart))) / count
            stderr = np.where(count > 0, stderr, np.nan)
            mean = add(total_value) / count
            lowest, highest = total[n_sums + q], total[n_sums + n_quantities + q]
            lowest = np.fmin.reduceat(lowest, starts, axis=0)
            highest = np.fmax.reduceat(highest, starts, axis=0)
            if averaged.quantities[q] in DIVIDED:
                # Steps are left out because of their distance, so they are unlike the others.
                share = n_left_out / np.maximum(counts[0], 1)
                farthest = np.fmax(highest - mean, mean - lowest)
                if averaged.quantities[q] in COSINES:
                    farthest = np.minimum(farthest, LARGEST_CHANGE)
                stderr = np.where(share > 0, np.hypot(stderr, share * farthest), stderr)
                mean = np.where(share > MAX_LEFT_OUT, np.nan, mean)
            if averaged.quantities[q] in COSINES:
                is_unknown = stderr > MAX_ERROR
                mean = np.where(is_unknown, np.nan, mean)
                counts[IMPRECISE_COUNT] = np.where(
                    is_unknown, counts[0], counts[IMPRECISE_COUNT]
                )
        found += [mean, stderr, lowest, highest, count]
    return np.stack([*found, *counts])


def by_name(averaged: Averaged, results: Any) -> Mapping[str, Any]:
    """Return the results of `means` by the names of variables; lazy results stay lazy."""
    names = [f"{name}{suffix}" for name in averaged.quantities for suffix in MEANS]
    return {name: results[i] for i, name in enumerate([*names, *COUNTS])}
