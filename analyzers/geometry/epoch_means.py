"""Average geometry over epochs, with standard errors."""

import xarray as xr

from analyzers._engine.arrays.geometry import QUANTITIES

# With inner products fixed, each quantity is proportional to this power of the distance.
_POWER_OF_DISTANCE = {"gamma": -1, "rsi": -2, "eb": -1, "lolr": 0, "distance": 1}


def epoch_means(geometry: xr.Dataset) -> xr.Dataset:
    r"""Average the quantities of `path_geometry` over the steps of each epoch.

    The error of a step has two parts. The error of the sketch, :math:`\sigma_k`, is
    independent between steps, so averaging over n steps reduces it by the square root of n.
    The error of the distance, :math:`\delta_k`, is shared by neighbouring steps, so averaging
    does not reduce it. The mean over the n steps of an epoch has the standard error

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
        is the number of steps that were left out because they are NaN.

    Raises
    ------
    KeyError
        If `geometry` lacks a variable of `path_geometry`.
    """
    missing = [name for name in QUANTITIES if name not in geometry]
    if missing:
        raise KeyError(
            f"No variables {missing} in the dataset; it has {list(geometry.data_vars)}. "
            "epoch_means takes the result of analyzers.path_geometry."
        )
    # Building the graph needs the labels of the epochs, which are small.
    geometry = geometry.drop_indexes(["epoch", "iteration"], errors="ignore")
    geometry = geometry.assign_coords(epoch=geometry["epoch"].compute())
    # The relative error is undefined at x* itself.
    distance = geometry["distance"].where(geometry["distance"] > 0)
    relative = geometry["distance_stderr"] / distance
    variables = {}
    for name in QUANTITIES:
        value, stderr = geometry[name], geometry[f"{name}_stderr"]
        shared = _POWER_OF_DISTANCE[name] * value * relative
        own_variance = (stderr**2 - shared**2).clip(min=0)
        epochs = value.groupby("epoch")
        n = epochs.count()
        own = own_variance.groupby("epoch").sum() / (n**2).where(n > 0)
        attributes = value.attrs
        variables[name] = epochs.mean().assign_attrs(attributes)
        mean_stderr = (own + shared.groupby("epoch").mean() ** 2) ** 0.5
        long_name = f"standard error of the mean of {name}"
        variables[f"{name}_stderr"] = mean_stderr.assign_attrs(
            long_name=long_name, units="1"
        )
        variables[f"{name}_min"] = epochs.min().assign_attrs(attributes)
        variables[f"{name}_max"] = epochs.max().assign_attrs(attributes)
    finite = geometry["gamma"].notnull()
    variables["n_steps"] = finite.groupby("epoch").sum()
    variables["n_missing"] = (~finite).groupby("epoch").sum()
    return xr.Dataset(variables, attrs=geometry.attrs)
