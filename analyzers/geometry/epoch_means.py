"""Means over epochs, with their standard errors."""

import xarray as xr

from analyzers._engine.arrays.geometry import QUANTITIES

_POWER_OF_DISTANCE = {"gamma": -1, "rsi": -2, "eb": -1, "lolr": 0, "distance": 1}


def epoch_means(geometry: xr.Dataset) -> xr.Dataset:
    r"""Average the quantities of `path_geometry` over the steps of each epoch.

    The error of a step has two parts. The error of the sketch is independent from step to
    step, and falls with the square root of their number. The error of the distance is shared
    by neighbouring steps, and does not fall. With :math:`\sigma_k` the first part,
    :math:`\delta_k` the second and n steps,

    .. math:: \mathrm{stderr}^2 = \frac{1}{n^2} \sum_k \sigma_k^2
              + \Big( \frac{1}{n} \sum_k \delta_k \Big)^2 .

    Parameters
    ----------
    geometry : xarray.Dataset
        As returned by `path_geometry`; may be lazy.

    Returns
    -------
    xarray.Dataset
        Lazy if `geometry` is. Dimension ``epoch`` instead of ``step``. For each quantity
        its mean, the standard error of the mean in ``_stderr``, and extremes over the steps
        in ``_min`` and ``_max``; ``n_steps``, the number of averaged steps, and
        ``n_missing``, the number of steps that are NaN.

    Raises
    ------
    KeyError
        If `geometry` lacks a variable of `path_geometry`.
    """
    missing = [name for name in QUANTITIES if name not in geometry]
    if missing:
        raise KeyError(
            f"No variables {missing} in the dataset; it has {list(geometry.data_vars)}. "
            "epoch_means takes what analyzers.path_geometry returns."
        )
    # Building the graph needs the groups; the labels themselves are small.
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
        of_mean = (own + shared.groupby("epoch").mean() ** 2) ** 0.5
        long_name = f"standard error of the mean of {name}"
        variables[f"{name}_stderr"] = of_mean.assign_attrs(
            long_name=long_name, units="1"
        )
        variables[f"{name}_min"] = epochs.min().assign_attrs(attributes)
        variables[f"{name}_max"] = epochs.max().assign_attrs(attributes)
    finite = geometry["gamma"].notnull()
    variables["n_steps"] = finite.groupby("epoch").sum()
    variables["n_missing"] = (~finite).groupby("epoch").sum()
    return xr.Dataset(variables, attrs=geometry.attrs)
