"""Summarise a run by the middle half of its epochs."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers._engine.arrays.geometry import QUANTITIES
from analyzers.geometry.time_axis import time_of

AVERAGED: Final = ("gamma", "excess")
"""Quantities of which the mean over epochs is taken; of others, the median."""

DIFFERENCE: Final = "_difference"
"""Suffix of a quantity minus that of the first run, in a comparison."""


def middle_half(n: int) -> slice:
    """Return the middle half of n epochs, at least one: what "mid-run" means everywhere."""
    first = round(n / 4)
    return slice(first, max(first + 1, 3 * n // 4))


def mid_run(means: xr.Dataset) -> xr.Dataset:
    r"""Summarise means of epochs by one number for each quantity, from the middle half of the run.

    Gamma, or the excess of gamma, is the mean of the epochs' means. RSI, EB, loLR and the
    distance are medians of the epochs' means: near the end of a schedule they change by orders of magnitude, and a single
    epoch would dominate their mean. If the target lies inside the run, only the epochs before it
    count: later steps lead away from it, and their gamma is usually negative.

    Parameters
    ----------
    means : xarray.Dataset
        A result of `epoch_means` or `range_means`, of the geometry or of the excess, or of
        `compare`; may be lazy.

    Returns
    -------
    xarray.Dataset
        Lazy if `means` is lazy, without the dimension ``epoch`` (or ``step``). ``gamma``,
        ``rsi``, ``eb``, ``lolr`` and ``distance``, or ``excess``, each with its standard error
        (``_stderr``); float64, units of 1. Of a comparison also ``gamma_difference`` and others, minus
        the summary of the first run, with ``_difference_stderr``: the error of both estimates,
        not of other seeds. NaN where no epoch of the middle half is known, and
        in a comparison for runs without epochs if other runs have epochs.

    Notes
    -----
    The middle half of n epochs begins with epoch ``round(n / 4)`` and ends before epoch
    ``3 * n // 4``; it has at least one epoch. Errors of different epochs are taken as
    independent. The standard error of a median is that of the epochs in the middle of the
    order, which is too large where the epochs differ by less than their errors. It is the error
    of the estimates, and does not say what another seed of the training would change.

    Examples
    --------
    >>> import analyzers
    >>> means = analyzers.epoch_means(analyzers.path_geometry(example_run))
    >>> middle = analyzers.mid_run(means).compute()
    >>> bool(middle.gamma == means.gamma[1:3].mean())  # of five epochs
    True
    """
    used = used_epochs(means)
    variables: dict[str, xr.DataArray] = {}
    for name in ["excess"] if "excess" in means else QUANTITIES:
        kind = "mean" if name in AVERAGED else "median"
        value, stderr = summary(means, name, used)
        old = means[name].attrs
        long_name = f"mid-run {kind} of epochs: {old.get('long_name', name)}"
        variables[name] = value.assign_attrs(old | {"long_name": long_name})
        label = f"standard error of the mid-run {kind} of {name}"
        variables[f"{name}_stderr"] = stderr.assign_attrs(long_name=label, units="1")
        if f"{name}{DIFFERENCE}" in means:
            variables |= _difference(means, name, value, stderr)
    return xr.Dataset(variables, attrs=means.attrs).drop_vars(
        ["last_step"], errors="ignore"
    )


def _difference(
    means: xr.Dataset, name: str, value: xr.DataArray, stderr: xr.DataArray
) -> dict[str, xr.DataArray]:
    """Return the summaries of a comparison, (run,), minus that of the first run."""
    apart = means[f"{name}{DIFFERENCE}"]
    # The first run, given again, is known to have the same values.
    is_exact = means[f"{name}{DIFFERENCE}_stderr"] == 0
    is_same = (is_exact | apart.isnull()).all("epoch")
    error = (stderr**2 + stderr.isel(run=0) ** 2) ** 0.5
    label = f"mid-run {name} minus that of the first run"
    of_error = f"standard error of the {label}"
    return {
        f"{name}{DIFFERENCE}": (value - value.isel(run=0)).assign_attrs(
            long_name=label, units="1"
        ),
        f"{name}{DIFFERENCE}_stderr": error.where(~is_same, 0 * error).assign_attrs(
            long_name=of_error, units="1"
        ),
    }


def used_epochs(means: xr.Dataset) -> xr.DataArray:
    """Return which epochs belong to the middle half, (..., epoch)."""
    dim = time_of(means)
    held = means[dim].copy(data=np.ones(means.sizes[dim], bool))
    if dim == "epoch":
        # Epochs of damaged chunks are -1.
        held = means["epoch"] >= 0
    if "run" in means.dims:
        held = held & (means["n_steps"] > 0)
    held = _before_target(means, held)
    used: xr.DataArray = xr.apply_ufunc(
        in_middle_half,
        held,
        input_core_dims=[[dim]],
        output_core_dims=[[dim]],
        dask="parallelized",
        dask_gufunc_kwargs={"allow_rechunk": True},
        output_dtypes=[bool],
    )
    if "run" in means.dims:
        # A mean over all steps of a run without epochs is no match for the middle of others.
        n = held.sum(dim)
        used = used & ((n > 1) | (n.max("run") < 2))
    return used


def leads_away(means: xr.Dataset) -> bool:
    """Whether the target lies inside the run, so that later steps lead away from it."""
    return "reference_epoch" in means.attrs


def _before_target(means: xr.Dataset, held: xr.DataArray) -> xr.DataArray:
    """Leave out the epochs from that of a target inside the run on, if others are left."""
    if not leads_away(means):
        return held
    if time_of(means) == "step":
        before = means["last_step"] < means.attrs["reference_step"]
    else:
        # One number, or one for each run, NaN for targets that are not inside.
        target = np.array(means.attrs["reference_epoch"], float)
        limit = np.where(np.isnan(target), np.inf, target)
        before = means["epoch"] < (
            xr.DataArray(limit, dims="run") if limit.ndim else float(limit)
        )
    kept = held & before
    found: xr.DataArray = kept.where(kept.any(time_of(means)), held)
    return found


def in_middle_half(held: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which of the epochs that a run has are in its middle half, (..., epoch)."""
    order = np.cumsum(held, -1) - 1
    n = held.sum(-1)
    bounds = [middle_half(int(k)) for k in np.ravel(n)]
    first, stop = (
        np.reshape([getattr(b, end) for b in bounds], (*n.shape, 1))
        for end in ("start", "stop")
    )
    inside: npt.NDArray[np.bool_] = held & (order >= first) & (order < stop)
    return inside


def summary(
    means: xr.Dataset, name: str, used: xr.DataArray
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the mean or median of the epochs in use, and its standard error."""
    [dim] = {"epoch", "step"} & set(used.dims)
    function = mean_of if name in AVERAGED else median_of
    value = means[name].where(used)
    found: tuple[xr.DataArray, xr.DataArray] = xr.apply_ufunc(
        function,
        value,
        means[f"{name}_stderr"],
        input_core_dims=[[dim], [dim]],
        output_core_dims=[[], []],
        dask="parallelized",
        dask_gufunc_kwargs={"allow_rechunk": True},
        output_dtypes=[np.float64, np.float64],
    )
    return found


def mean_of(value: Any, stderr: Any) -> tuple[Any, Any]:
    """Return the mean of the known values, (..., epoch), and its standard error."""
    is_known = ~np.isnan(value)
    n = is_known.sum(-1)
    counted = np.where(n > 0, n, np.nan)
    total = np.where(is_known, value, 0.0).sum(-1)
    variance = np.where(is_known, stderr, 0.0) ** 2
    return total / counted, np.sqrt(variance.sum(-1)) / counted


def median_of(value: Any, stderr: Any) -> tuple[Any, Any]:
    """Return the median of the known values, (..., epoch), and its standard error."""
    n = (~np.isnan(value)).sum(-1, keepdims=True)
    order = np.argsort(value, axis=-1)  # NaN last

    def at(values: Any, rank: Any) -> Any:
        return np.take_along_axis(values, np.take_along_axis(order, rank, -1), -1)

    ranks = np.maximum(n - 1, 0) // 2, n // 2
    low, high = ((at(value, rank), at(stderr, rank)) for rank in ranks)
    is_one = n % 2 == 1
    error = np.where(is_one, low[1], np.hypot(low[1], high[1]) / 2)
    middle = np.where(n > 0, (low[0] + high[0]) / 2, np.nan)
    return middle[..., 0], np.where(n > 0, error, np.nan)[..., 0]
