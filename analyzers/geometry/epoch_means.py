"""Averages over epochs, with what is known of their errors."""

import xarray as xr

from analyzers._engine.arrays.geometry import QUANTITIES

_POWER_OF_DISTANCE = {"gamma": -1, "rsi": -2, "eb": -1, "lolr": 0, "distance": 1}


def epoch_means(geometry: xr.Dataset) -> xr.Dataset:
    r"""Average the quantities of `path_geometry` over the steps of each epoch.

    The error of a step has two parts. That of the sketch is independent from step to
    step, and falls with the square root of their number; that of the distance is shared
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
        Lazy if `geometry` is. Dimension ``epoch`` instead of ``step``. For every
        quantity its mean, ``_stderr``, the standard error of the mean, and ``_min`` and
        ``_max`` over the steps; ``n_steps`` and ``n_missing``, how many steps were
        averaged and how many are NaN.

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
    # Groups have to be known to build the graph; the labels themselves are small.
    geometry = geometry.drop_indexes(["epoch", "iteration"], errors="ignore")
    geometry = geometry.assign_coords(epoch=geometry["epoch"].compute())
    # At x* itself, and where nothing is known, there is nothing to divide by.
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
