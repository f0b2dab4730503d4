"""One number for a run: the mean over the middle half of its epochs."""

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import xarray as xr

from analyzers.no_wrong_turns.claims.verdict import Measured

POWER_OF_DISTANCE: Final = {
    "gamma": -1, "rsi": -2, "eb": -1, "lolr": 0, "distance": 1,
}  # fmt: skip
"""How quantities depend on the distance, whose error steps have in common."""


class Epochs(NamedTuple):
    """Epochs from the first to before the last, as fractions that were rounded."""

    first: int
    stop: int


def middle(n_epochs: int) -> Epochs:
    """Return the middle half of the epochs: neither the start nor the end.

    Parameters
    ----------
    n_epochs : int
        Epochs of the run.

    Returns
    -------
    Epochs
        From a quarter of the epochs to three quarters, one epoch at least.
    """
    first = round(n_epochs / 4)
    return Epochs(first, max(first + 1, 3 * n_epochs // 4))


def steps_of(geometry: xr.Dataset, epochs: Epochs) -> xr.Dataset:
    """Choose the steps of some epochs that have a value of gamma."""
    epoch = geometry["epoch"].values
    inside = (epoch >= epochs.first) & (epoch < epochs.stop)
    return geometry.isel(step=np.flatnonzero(inside & geometry["gamma"].notnull()))


def mean_over(geometry: xr.Dataset, name: str, epochs: Epochs) -> Measured:
    r"""Mean of a quantity over the steps of some epochs.

    With n steps in m epochs, s the standard deviation over the steps from a straight line
    through them, t that of the means of epochs from the line, and d the mean of the part
    of the errors that steps have in common, that of the distance,

    .. math:: \mathrm{stderr}^2 = \max\Big( \frac{s^2}{n}, \frac{t^2}{m} \Big) + d^2 .

    s has in it how steps differ and what the sketch adds; t as well that neighbouring
    steps are alike. A trend is no error of the mean. How other runs would differ, with
    other seeds, is not part of it.

    Parameters
    ----------
    geometry : xarray.Dataset
        As returned by `analyzers.path_geometry`, loaded.
    name : str
        The quantity.
    epochs : Epochs
        Which epochs.

    Returns
    -------
    Measured
        NaN where there is no such step; the standard error is NaN for fewer than three.
    """
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
    # Of gamma less that of a walk, gamma alone rests on the distance.
    name, of_distance = (
        ("gamma", steps["gamma"]) if name == "excess" else (name, steps[name])
    )
    shared = float(np.mean(POWER_OF_DISTANCE[name] * of_distance.values * relative))
    stderr = math.sqrt(max(of_steps, of_epochs) + shared**2)
    return Measured(float(values.mean()), stderr)


def variance_within_epochs(geometry: xr.Dataset, epochs: Epochs) -> Measured:
    """Variance of gamma over the steps of an epoch, less that of the estimates.

    Parameters
    ----------
    geometry : xarray.Dataset
        As returned by `analyzers.path_geometry`, loaded.
    epochs : Epochs
        Which epochs.

    Returns
    -------
    Measured
        Mean over the epochs; the standard error is that of this mean, NaN where there is
        one epoch only.
    """
    return _over_epochs([own for own, _ in _own_variances(geometry, epochs)])


def relative_variance(geometry: xr.Dataset, epochs: Epochs) -> Measured:
    """`variance_within_epochs` over the square of the mean of gamma in the epoch.

    Parameters
    ----------
    geometry : xarray.Dataset
        As returned by `analyzers.path_geometry`, loaded.
    epochs : Epochs
        Which epochs.

    Returns
    -------
    Measured
        As of `variance_within_epochs`.
    """
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


def share_of_negative(geometry: xr.Dataset, epochs: Epochs) -> Measured:
    """Share of steps whose gamma is negative by more than two standard errors.

    Parameters
    ----------
    geometry : xarray.Dataset
        As returned by `analyzers.path_geometry`, loaded.
    epochs : Epochs
        Which epochs.

    Returns
    -------
    Measured
        With the standard error of a share, never 0: as if half a step more were negative,
        and half a step more were not.
    """
    steps = steps_of(geometry, epochs)
    n = steps.sizes["step"]
    if not n:
        return Measured(math.nan, math.nan)
    negative = int((steps["gamma"] < -2 * steps["gamma_stderr"]).sum())
    likely = (negative + 0.5) / (n + 1)
    return Measured(negative / n, math.sqrt(likely * (1 - likely) / n))
