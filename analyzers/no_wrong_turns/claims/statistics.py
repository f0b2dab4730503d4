"""Statistics: functions that reduce the geometry of a run to a number and its error."""

import math
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers.geometry.epoch_means import epoch_means
from analyzers.geometry.mid_run import middle_half
from analyzers.geometry.null import subtract_null
from analyzers.no_wrong_turns.claims.verdict import UNKNOWN, Measured, ratio
from trajstore.reading.run import Run

POWER_OF_DISTANCE: Final = {
    "gamma": -1, "rsi": -2, "eb": -1, "lolr": 0, "distance": 1, "excess": -1,
}  # fmt: skip
"""Exponent of the distance in each quantity. It multiplies the relative error of the distance,
which all steps share."""

LATE_START: Final = 155 / 180
"""Fraction of the epochs at which the late part of a run begins."""
# The paper's figures of ImageNet stop at this point.


class Epochs(NamedTuple):
    """Range of epochs from `first` to before `stop`."""

    first: int
    stop: int


Statistic = Callable[[xr.Dataset, Run, Epochs], Measured]
"""Function of the loaded geometry of a run, the run, and its middle epochs."""


def middle(n_epochs: int) -> Epochs:
    """Return the middle half of the epochs, but at least one epoch."""
    half = middle_half(n_epochs)
    return Epochs(half.start, half.stop)


def before_final(n_epochs: int) -> Epochs:
    """Return all epochs except the final epoch, but at least one epoch."""
    return Epochs(0, max(1, n_epochs - 1))


def steps_of(geometry: xr.Dataset, epochs: Epochs) -> xr.Dataset:
    """Return the steps in a range of epochs at which gamma is known."""
    epoch = geometry["epoch"].values
    inside = (epoch >= epochs.first) & (epoch < epochs.stop)
    return geometry.isel(step=np.flatnonzero(inside & geometry["gamma"].notnull()))


def mean_over(geometry: xr.Dataset, name: str, epochs: Epochs) -> Measured:
    """Return the mean over steps and its standard error, NaN for fewer than three steps."""
    # For n steps in m epochs, stderr^2 = max(s^2 / n, t^2 / m) + d^2. After a linear trend is
    # subtracted, s is the standard deviation of the steps and t that of the epoch means; d is
    # the mean error due to the distance, which all steps share. s covers differences between
    # steps and the error of the sketch; t also covers the correlation of neighbouring steps.
    # The error covers neither the trend nor the difference between seeds.
    steps = steps_of(geometry, epochs)
    values, epoch = steps[name].values, steps["epoch"].values
    if len(values) < 3:
        return Measured(float(values.mean()) if len(values) else math.nan, math.nan)
    n, index = len(values), np.arange(len(values))
    residuals = values - np.polynomial.Polynomial.fit(index, values, 1)(index)
    step_variance = np.sum(residuals**2) / (n - 2) / n
    means = np.array([residuals[epoch == e].mean() for e in np.unique(epoch)])
    m = len(means)
    epoch_variance = np.sum(means**2) / (m - 2) / m if m > 2 else 0.0
    relative = steps["distance_stderr"].values / steps["distance"].values
    # In the excess of gamma over a random walk, only gamma depends on the distance.
    dependent = steps["gamma" if name == "excess" else name].values
    shared = float(np.mean(POWER_OF_DISTANCE[name] * dependent * relative))
    stderr = math.sqrt(max(step_variance, epoch_variance) + shared**2)
    return Measured(float(values.mean()), stderr)


def mid_run(quantity: str) -> Statistic:
    """Return the statistic that averages a quantity over the middle epochs."""
    return lambda geometry, _, epochs: mean_over(geometry, quantity, epochs)


def excess_over_walk(geometry: xr.Dataset, run: Run, epochs: Epochs) -> Measured:
    """Return the mean excess of gamma over that of a random walk of the same step lengths."""
    return mean_over(geometry.assign(subtract_null(geometry, run)), "excess", epochs)


def distance_from_start(geometry: xr.Dataset, run: Run, epochs: Epochs) -> Measured:
    """Return the distance from the start to x*, the end of the path."""
    del run, epochs
    first = geometry.isel(step=0)
    return Measured(float(first["distance"]), float(first["distance_stderr"]))


def late_distance(geometry: xr.Dataset, run: Run, epochs: Epochs) -> Measured:
    """Return the mean distance to x* late in the run, relative to the initial distance."""
    del epochs
    late = Epochs(int(LATE_START * run.n_epochs), run.n_epochs)
    mean, start = mean_over(geometry, "distance", late), geometry["distance"].values[0]
    return Measured(mean.value / start, mean.stderr / start)


def variance_within_epochs(
    geometry: xr.Dataset, run: Run | None, epochs: Epochs
) -> Measured:
    """Return the variance of gamma within epochs, minus the variance due to errors of gamma."""
    del run
    return _over_epochs([own for own, _ in _own_variances(geometry, epochs)])


def relative_variance(
    geometry: xr.Dataset, run: Run | None, epochs: Epochs
) -> Measured:
    """Return `variance_within_epochs`, divided in each epoch by the squared mean of gamma."""
    del run
    return _over_epochs(
        [own / mean**2 for own, mean in _own_variances(geometry, epochs)]
    )


def _own_variances(
    geometry: xr.Dataset, epochs: Epochs
) -> Iterator[tuple[float, float]]:
    """Yield the variance of gamma, minus that due to its errors, and its mean, by epoch."""
    # Epochs with fewer than two values are left out.
    for epoch in range(epochs.first, epochs.stop):
        steps = steps_of(geometry, Epochs(epoch, epoch + 1))
        values, stderr = steps["gamma"].values, steps["gamma_stderr"].values
        if len(values) > 1:
            yield float(values.var(ddof=1) - np.mean(stderr**2)), float(values.mean())


def _over_epochs(values: list[float]) -> Measured:
    if len(values) < 2:
        return Measured(values[0] if values else math.nan, math.nan)
    stderr = np.std(values, ddof=1) / math.sqrt(len(values))
    return Measured(float(np.mean(values)), float(stderr))


def largest_over_smallest(quantity: str) -> Statistic:
    """Return the statistic that divides the largest epoch mean by the smallest."""
    # The ratio is infinite if a mean is not positive.

    def statistic(geometry: xr.Dataset, run: Run | None, epochs: Epochs) -> Measured:
        del run
        means = [
            mean_over(geometry, quantity, Epochs(epoch, epoch + 1))
            for epoch in range(epochs.first, epochs.stop)
        ]
        if len(means) < 2:
            return UNKNOWN
        low, high = min(means), max(means)
        return ratio(high, low) if low.value > 0 else Measured(math.inf, 0.0)

    return statistic


def negative_share(geometry: xr.Dataset, run: Run, epochs: Epochs) -> Measured:
    """Return `share_of_negative` before the final epoch."""
    del epochs
    return share_of_negative(geometry, before_final(run.n_epochs))


def share_of_negative(geometry: xr.Dataset, epochs: Epochs) -> Measured:
    """Return the share of steps with gamma below zero by more than two standard errors."""
    steps = steps_of(geometry, epochs)
    n = steps.sizes["step"]
    if not n:
        return UNKNOWN
    negative = int((steps["gamma"] < -2 * steps["gamma_stderr"]).sum())
    # Half a negative step and half a positive step are added to avoid an error of 0.
    smoothed = (negative + 0.5) / (n + 1)
    return Measured(negative / n, math.sqrt(smoothed * (1 - smoothed) / n))


def errors_hide_sign(geometry: xr.Dataset, run: Run) -> bool:
    """Whether the median standard error of gamma exceeds half of the mean of gamma."""
    steps = steps_of(geometry, before_final(run.n_epochs))
    median_stderr = float(steps["gamma_stderr"].median())
    return 2 * median_stderr > float(steps["gamma"].mean())


def correlation_with_rate(geometry: xr.Dataset, run: Run, epochs: Epochs) -> Measured:
    """Return the rank correlation of loLR and the learning rate before the final epoch."""
    del epochs
    before_last = slice(None, -1)
    rate = run.steps["lr"].compute().groupby("epoch").mean()
    optimal = epoch_means(geometry)["lolr"]
    return rank_correlation(
        optimal.isel(epoch=before_last).values, rate.isel(epoch=before_last).values
    )


def rank_correlation(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]
) -> Measured:
    """Return Spearman's rank correlation, with its error for independent ranks."""
    # Neighbouring epochs are alike, so unrelated trends may appear correlated.
    ranks = [_ranks(values) for values in (a, b)]
    n = len(a)
    stderr = 1 / math.sqrt(n - 1) if n > 1 else math.nan
    return Measured(float(np.asarray(np.corrcoef(ranks))[0, 1]), stderr)


def _ranks(values: npt.NDArray[np.float64]) -> list[float]:
    """Return the rank of every value; equal values share the mean of their ranks."""
    return [float(np.mean(np.flatnonzero(np.sort(values) == v))) for v in values]
