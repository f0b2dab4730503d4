"""Statistics: one number for a run, with its standard error, from its geometry."""

import math
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers.geometry.epoch_means import epoch_means
from analyzers.geometry.null import excess_gamma
from analyzers.no_wrong_turns.claims.verdict import UNKNOWN, Measured, ratio
from trajstore.reading.run import Run

POWER_OF_DISTANCE: Final = {
    "gamma": -1, "rsi": -2, "eb": -1, "lolr": 0, "distance": 1, "excess": -1,
}  # fmt: skip
"""Exponents of the distance in quantities; all steps share its error."""

LATE_START: Final = 155 / 180
"""Fraction of the epochs after which a run is late; on ImageNet the paper stops there."""


class Epochs(NamedTuple):
    """Epochs from the first to before the stop."""

    first: int
    stop: int


Statistic = Callable[[xr.Dataset, Run, Epochs], Measured]
"""Takes the geometry of a run, loaded, the run, and its middle epochs."""


def middle(n_epochs: int) -> Epochs:
    """Return the middle half of the epochs, at least one."""
    first = round(n_epochs / 4)
    return Epochs(first, max(first + 1, 3 * n_epochs // 4))


def before_final(n_epochs: int) -> Epochs:
    """Return all epochs but the final one, at least one."""
    return Epochs(0, max(1, n_epochs - 1))


def steps_of(geometry: xr.Dataset, epochs: Epochs) -> xr.Dataset:
    """Choose the steps of some epochs that have a value of gamma."""
    epoch = geometry["epoch"].values
    inside = (epoch >= epochs.first) & (epoch < epochs.stop)
    return geometry.isel(step=np.flatnonzero(inside & geometry["gamma"].notnull()))


def mean_over(geometry: xr.Dataset, name: str, epochs: Epochs) -> Measured:
    """Return the mean over steps; NaN without steps, stderr NaN for fewer than three."""
    # n steps in m epochs; s is the standard deviation of the steps about a straight line
    # through them, t that of the means of epochs, d the mean error from the distance,
    # which all steps share: stderr^2 = max(s^2 / n, t^2 / m) + d^2. s holds how steps
    # differ and the error of the sketch; t also that neighbouring steps are alike. A trend
    # is no error of the mean, and other seeds are not part of it.
    steps = steps_of(geometry, epochs)
    values, epoch = steps[name].values, steps["epoch"].values
    if len(values) < 3:
        return Measured(float(values.mean()) if len(values) else math.nan, math.nan)
    n, places = len(values), np.arange(len(values))
    left = values - np.polynomial.Polynomial.fit(places, values, 1)(places)
    of_steps = np.sum(left**2) / (n - 2) / n
    means = np.array([left[epoch == e].mean() for e in np.unique(epoch)])
    m = len(means)
    of_epochs = np.sum(means**2) / (m - 2) / m if m > 2 else 0.0
    relative = steps["distance_stderr"].values / steps["distance"].values
    # In the excess of gamma over a random walk, only gamma rests on the distance.
    of_distance = steps["gamma" if name == "excess" else name].values
    shared = float(np.mean(POWER_OF_DISTANCE[name] * of_distance * relative))
    stderr = math.sqrt(max(of_steps, of_epochs) + shared**2)
    return Measured(float(values.mean()), stderr)


def mid_run(quantity: str) -> Statistic:
    """Return the mean of a quantity over the middle epochs."""
    return lambda geometry, _, epochs: mean_over(geometry, quantity, epochs)


def excess_over_walk(geometry: xr.Dataset, run: Run, epochs: Epochs) -> Measured:
    """Return the mean of gamma minus the gamma of a random walk with the same step lengths."""
    return mean_over(geometry.assign(excess_gamma(geometry, run)), "excess", epochs)


def distance_from_start(geometry: xr.Dataset, run: Run, epochs: Epochs) -> Measured:
    """Return the distance from start to end: the distance to x* at the first step."""
    del run, epochs
    first = geometry.isel(step=0)
    return Measured(float(first["distance"]), float(first["distance_stderr"]))


def late_distance(geometry: xr.Dataset, run: Run, epochs: Epochs) -> Measured:
    """Return the mean distance to x* late in the run, relative to the first step."""
    del epochs
    late = Epochs(int(LATE_START * run.n_epochs), run.n_epochs)
    mean, start = mean_over(geometry, "distance", late), geometry["distance"].values[0]
    return Measured(mean.value / start, mean.stderr / start)


def variance_within_epochs(
    geometry: xr.Dataset, run: Run | None, epochs: Epochs
) -> Measured:
    """Return the variance of gamma over the steps of an epoch, less its error's."""
    del run
    return _over_epochs([own for own, _ in _own_variances(geometry, epochs)])


def relative_variance(
    geometry: xr.Dataset, run: Run | None, epochs: Epochs
) -> Measured:
    """Return `variance_within_epochs` over the squared mean of gamma in the epoch."""
    del run
    return _over_epochs(
        [own / mean**2 for own, mean in _own_variances(geometry, epochs)]
    )


def _own_variances(
    geometry: xr.Dataset, epochs: Epochs
) -> Iterator[tuple[float, float]]:
    """Yield variance and mean of gamma in every epoch with two values or more."""
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
    """Return the ratio of the extreme means of epochs; infinity if one is not positive."""

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
    """Return the share of steps whose gamma is negative by two standard errors."""
    steps = steps_of(geometry, epochs)
    n = steps.sizes["step"]
    if not n:
        return UNKNOWN
    negative = int((steps["gamma"] < -2 * steps["gamma_stderr"]).sum())
    # The error is never 0: as if half a step more were negative, and half were not.
    likely = (negative + 0.5) / (n + 1)
    return Measured(negative / n, math.sqrt(likely * (1 - likely) / n))


def errors_hide_sign(geometry: xr.Dataset, run: Run) -> bool:
    """Whether the standard error of most steps is above half of the mean of gamma."""
    steps = steps_of(geometry, before_final(run.n_epochs))
    typical = float(steps["gamma_stderr"].median())
    return 2 * typical > float(steps["gamma"].mean())


def correlation_with_rate(geometry: xr.Dataset, run: Run, epochs: Epochs) -> Measured:
    """Return the rank correlation over epochs of loLR and the rate, without the last."""
    del epochs
    before = slice(None, -1)
    rate = run.steps["lr"].compute().groupby("epoch").mean()
    optimal = epoch_means(geometry)["lolr"]
    return rank_correlation(
        optimal.isel(epoch=before).values, rate.isel(epoch=before).values
    )


def rank_correlation(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]
) -> Measured:
    """Return Spearman's correlation, with the error of uncorrelated ranks."""
    # Neighbouring epochs are alike: two unrelated trends are told apart badly.
    ranks = [_ranks(values) for values in (a, b)]
    n = len(a)
    stderr = 1 / math.sqrt(n - 1) if n > 1 else math.nan
    return Measured(float(np.asarray(np.corrcoef(ranks))[0, 1]), stderr)


def _ranks(values: npt.NDArray[np.float64]) -> list[float]:
    """Return the rank of every value; equal values share the mean of theirs."""
    return [float(np.mean(np.flatnonzero(np.sort(values) == v))) for v in values]
