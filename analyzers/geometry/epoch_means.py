"""Average geometry over epochs, with standard errors."""

import numpy as np
import xarray as xr

from analyzers._engine.arrays.geometry import (
    COVARIANCE,
    DISTANCE_LIMIT,
    FROM_DISTANCE,
    QUANTITIES,
)

_DIVIDED = ("gamma", "rsi", "eb")
"""Quantities that are divided by the distance."""


def epoch_means(geometry: xr.Dataset) -> xr.Dataset:
    r"""Average the quantities of `path_geometry` over the steps of each epoch.

    With :math:`c_k` the covariance of the error of step k with the sum of the errors in its
    window and epoch (the variables ending in ``_covariance``), the mean over the n steps of an
    epoch has the standard error

    .. math:: \mathrm{stderr}^2 = \frac{1}{n^2} \sum_k c_k .

    Errors of different windows are taken as independent. If `geometry` holds only a part of an
    epoch, these covariances do not apply. The error of a step then has two parts: the error of
    the sketch, :math:`\sigma_k`, is taken as independent between steps, and the error of the
    distance, :math:`\delta_k`, as shared by all steps:

    .. math:: \mathrm{stderr}^2 = \frac{1}{n^2} \sum_k \sigma_k^2
              + \Big( \frac{1}{n} \sum_k \delta_k \Big)^2 .

    Parameters
    ----------
    geometry : xarray.Dataset
        A result of `path_geometry`; may be lazy.

    Returns
    -------
    xarray.Dataset
        Lazy if `geometry` is lazy. The dimension ``epoch`` replaces ``step``. Each quantity
        has four variables: its mean, under its own name; the standard error of the mean,
        ending in ``_stderr``; and the smallest and largest value of a step, ending in
        ``_min`` and ``_max``. ``n_steps`` is the number of averaged steps, and ``n_missing``
        is the number of steps that were left out because they are NaN. ``n_imprecise`` is the
        number of steps that are also left out of gamma, RSI and EB, because the relative
        error of the distance is above 0.3: their errors are not first order.

    Raises
    ------
    KeyError
        If `geometry` lacks a variable of `path_geometry`.
    """
    suffixes = ("", "_stderr", FROM_DISTANCE, COVARIANCE)
    names = [f"{name}{suffix}" for name in QUANTITIES for suffix in suffixes]
    if missing := [name for name in names if name not in geometry]:
        raise KeyError(
            f"No variables {missing} in the dataset; it has {list(geometry.data_vars)}. "
            "epoch_means takes the result of analyzers.path_geometry."
        )
    # Building the graph needs the labels of the epochs, which are small.
    geometry = geometry.drop_indexes(["epoch", "iteration"], errors="ignore")
    geometry = geometry.assign_coords(epoch=geometry["epoch"].compute())
    is_whole = _whole_epochs(geometry)
    # The relative error is undefined at x* itself.
    distance = geometry["distance"].where(geometry["distance"] > 0)
    is_imprecise = geometry["distance_stderr"] > DISTANCE_LIMIT * distance
    variables = {}
    for name in QUANTITIES:
        value, stderr = geometry[name], geometry[f"{name}_stderr"]
        if name in _DIVIDED:
            value = value.where(~is_imprecise)
        is_known = value.notnull()
        shared = geometry[f"{name}{FROM_DISTANCE}"].where(is_known)
        own = (stderr.where(is_known) ** 2 - shared**2).clip(min=0)
        together = geometry[f"{name}{COVARIANCE}"].where(is_known)
        epochs = value.groupby("epoch")
        n = epochs.count()
        squared = (n**2).where(n > 0)
        apart = own.groupby("epoch").sum() / squared
        apart = apart + shared.groupby("epoch").mean() ** 2
        # Rounding may push the variance of a sum that is known below 0.
        exact = together.groupby("epoch").sum().clip(min=0) / squared
        mean_stderr = exact.where(is_whole, apart) ** 0.5
        attributes = value.attrs
        variables[name] = epochs.mean().assign_attrs(attributes)
        long_name = f"standard error of the mean of {name}"
        variables[f"{name}_stderr"] = mean_stderr.assign_attrs(
            long_name=long_name, units="1"
        )
        variables[f"{name}_min"] = epochs.min().assign_attrs(attributes)
        variables[f"{name}_max"] = epochs.max().assign_attrs(attributes)
    finite = geometry["gamma"].notnull()
    variables["n_steps"] = finite.groupby("epoch").sum()
    variables["n_missing"] = (~finite).groupby("epoch").sum()
    variables["n_imprecise"] = (finite & is_imprecise).groupby("epoch").sum()
    return xr.Dataset(variables, attrs=geometry.attrs)


def _whole_epochs(geometry: xr.Dataset) -> xr.DataArray:
    """Return for each epoch whether the dataset holds all of its steps, (epoch,)."""
    # A result holds every step of a run, and attrs["n_steps"] says how many these are. An
    # epoch is whole if its steps follow each other, and the neighbouring steps are held too
    # or do not exist.
    epochs = geometry["epoch"].values
    labels = np.unique(epochs)
    n_steps = geometry.attrs.get("n_steps")
    if "step" not in geometry.coords or n_steps is None:
        return xr.DataArray(np.zeros(len(labels), bool), {"epoch": labels}, ("epoch",))
    steps = geometry["step"].values
    held, found = set(steps.tolist()), []
    for label in labels:
        own = steps[epochs == label]
        first, last = int(own.min()), int(own.max())
        follows = len(own) == last - first + 1
        begins = first == 0 or first - 1 in held
        ends = last == n_steps - 1 or last + 1 in held
        found.append(follows and begins and ends)
    return xr.DataArray(np.array(found, bool), {"epoch": labels}, ("epoch",))
