"""Average geometry over epochs or ranges of steps, with standard errors."""

from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzers._engine.arrays.epoch_sums import (
    COUNTS,
    EXCESS,
    EXCESSES,
    GEOMETRY,
    N_AVERAGED,
    Averaged,
    Codes,
    by_name,
    combined_sums,
    means,
    partial_sums,
)
from analyzers._engine.arrays.geometry import FROM_DISTANCE
from analyzers.geometry.time_axis import (
    INDEPENDENT,
    N_RANGES,
    ROUNDING_ERROR,
    STEP_ERRORS,
    WINDOW_STARTS,
    has_one_epoch,
)


class Groups(NamedTuple):
    """Groups of steps whose errors are taken as independent of each other."""

    codes: Codes  # the group of every step, (step,)
    is_whole: npt.NDArray[np.bool_]  # whether its covariances apply, (group,)
    starts: Codes  # the first group of every mean, (mean,)


def epoch_means(geometry: xr.Dataset) -> xr.Dataset:
    r"""Average the quantities of `path_geometry` over the steps of each epoch.

    With :math:`c_k` the covariance of the error of step k with the sum of the errors in its
    window and epoch (the variables ending in ``_covariance``), the mean over the n steps of an
    epoch has the standard error

    .. math:: \mathrm{stderr}^2 = \frac{1}{n^2} \sum_k c_k .

    Errors of different windows are taken as independent, but for those of neighbours under SGD with
    momentum. If `geometry` holds only a part of an
    epoch, these covariances do not apply; an epoch that is selected as a whole, such as by
    ``geometry.sel(epoch=[3, 4])``, keeps its error if all epochs but the last have the same
    number of steps, and is else taken as a part. The error of a step then has two parts: the error of
    the sketch, :math:`\sigma_k`, is taken as independent between steps, and the error of the
    distance, :math:`\delta_k`, as shared by all steps:

    .. math:: \mathrm{stderr}^2 = \frac{1}{n^2} \sum_k \sigma_k^2
              + \Big( \frac{1}{n} \sum_k \delta_k \Big)^2 .

    Parameters
    ----------
    geometry : xarray.Dataset
        A result of `path_geometry` or of `excess_gamma`; may be lazy.

    Returns
    -------
    xarray.Dataset
        Lazy if `geometry` is lazy. The dimension ``epoch`` replaces ``step``. Each quantity
        of `path_geometry`, or the excess,
        has five variables: its mean, under its own name; the standard error of the mean,
        ending in ``_stderr``, which is NaN if that of a step in the mean is not known; the smallest
        and largest value of a step, ending in ``_min`` and ``_max``; and the number of steps in the
        mean, ending in ``_n_steps``. Values of steps are estimates, and their extremes are the
        extremes of their errors, too: ``gamma_max`` of a small layer may exceed 1, which no
        cosine does. ``n_steps`` is the number of steps whose gamma, or excess, is known, and ``n_missing``
        is the number of steps whose gamma is NaN. The distance and EB may be known in these steps, such
        as after a gradient that was not finite or with damaged signs; ``distance_n_steps`` says in how
        many. ``n_imprecise`` is the
        number of steps that are also left out of gamma, RSI and EB, because the relative
        error of the distance is above 0.3: their errors are not first order. These steps are nearest to x*
        and unlike the others, so the standard error contains what they may change: their share times the
        difference between the mean and the farthest step that counts. If they are more than half of
        the steps, the mean is NaN, and the error stays. Where the standard
        error of a mean gamma is above 1, as in layers whose gradient is nothing but rounding,
        the mean is NaN, all steps of the epoch count as imprecise, and the error stays.

    Raises
    ------
    KeyError
        If `geometry` lacks a variable of `path_geometry` or of `excess_gamma`.
    """
    # Building the graph needs the labels of the epochs, which are small.
    labels, codes = np.unique(geometry["epoch"].values, return_inverse=True)
    epoch = ("epoch", labels, geometry["epoch"].attrs)
    if WINDOW_STARTS in geometry.attrs and "n_steps" in geometry.attrs:
        # The run has no epochs of its own.
        return _means(geometry, _groups(geometry, codes), epoch)
    is_whole = _whole_epochs(geometry, labels, codes)
    return _means(geometry, Groups(codes, is_whole, np.arange(len(labels))), epoch)


def range_means(geometry: xr.Dataset, *, n_ranges: int = N_RANGES) -> xr.Dataset:
    """Average the quantities of `path_geometry` over ranges of steps, for runs without epochs.

    A range consists of windows, which are whole but at its ends, or of epochs, if the run has
    several. Their errors are taken as independent. A whole window or epoch has the error that its
    covariances state, as in `epoch_means`; what is cut has that of a part of an epoch. In networks
    whose distances have errors that are independent between steps, such as networks of up to 1024
    parameters without momentum, the errors of a part are independent as well.

    Parameters
    ----------
    geometry : xarray.Dataset
        A result of `path_geometry` or of `excess_gamma`; may be lazy.
    n_ranges : int, default: 20
        Largest number of ranges, of equal length except for the last one.

    Returns
    -------
    xarray.Dataset
        Lazy if `geometry` is lazy. The variables are those of `epoch_means`. Along the dimension
        ``step``, the coordinates ``step`` and ``last_step`` hold the first and the last step of
        each range.

    Raises
    ------
    KeyError
        If `geometry` lacks a variable of `path_geometry`.
    ValueError
        If `n_ranges` is not positive, or if there are no steps.
    """
    steps = geometry["step"].values
    if n_ranges < 1 or not len(steps):
        raise ValueError(
            f"Expected at least one range and one step, got {n_ranges} ranges and {len(steps)} "
            "steps."
        )
    codes = np.arange(len(steps)) // -(-len(steps) // n_ranges)
    firsts = np.flatnonzero(np.diff(codes, prepend=-1))
    lasts = np.append(firsts[1:], len(steps)) - 1
    means = _means(geometry, _groups(geometry, codes), ("step", steps[firsts], {}))
    return means.assign_coords(last_step=("step", steps[lasts]))


def means_for_tables(geometry: xr.Dataset) -> xr.Dataset:
    """Return the means over epochs, or over ranges of steps if there is one epoch."""
    has_one = has_one_epoch(geometry["epoch"].values)
    return range_means(geometry) if has_one else epoch_means(geometry)


def _means(geometry: xr.Dataset, groups: Groups, label: Any) -> xr.Dataset:
    """Average groups of steps; `label` is the coordinate of the means."""
    averaged = EXCESSES if EXCESS in geometry and "gamma" not in geometry else GEOMETRY
    if missing := [name for name in averaged.needed if name not in geometry]:
        raise KeyError(
            f"No variables {missing} in the dataset; it has {list(geometry.data_vars)}. Means are "
            "those of a result of analyzers.path_geometry or analyzers.excess_gamma."
        )
    used = xr.broadcast(*(geometry[name] for name in averaged.needed))
    if geometry.attrs.get(STEP_ERRORS) == INDEPENDENT:
        # Only rounding is shared; the stated errors of the steps contain the distance's.
        floor = geometry.attrs.get(ROUNDING_ERROR, 0.0)
        values = {q: abs(geometry[q]) for q in averaged.quantities}
        used = tuple(
            v * 0 + floor * values[name.removesuffix(FROM_DISTANCE)]
            if name.endswith(FROM_DISTANCE)
            else v
            for name, v in zip(averaged.needed, used, strict=True)
        )
    used = tuple(variable.transpose("step", ...) for variable in used)
    average = _lazy_means if any(v.chunks for v in used) else _eager_means
    results = by_name(averaged, average(averaged, used, groups))
    dims = (label[0], *used[0].dims[1:])
    variables: dict[str, Any] = {}
    for name in averaged.quantities:
        attributes = geometry[name].attrs
        long_name = f"standard error of the mean of {name}"
        stderr_attributes = {"long_name": long_name, "units": "1"}
        variables[name] = (dims, results[name], attributes)
        variables[f"{name}_stderr"] = dims, results[f"{name}_stderr"], stderr_attributes
        for suffix in ("_min", "_max"):
            variables[f"{name}{suffix}"] = dims, results[f"{name}{suffix}"], attributes
        counts = {"long_name": f"number of steps in the mean of {name}", "units": "1"}
        n_averaged = results[f"{name}{N_AVERAGED}"].astype(np.int64)
        variables[f"{name}{N_AVERAGED}"] = dims, n_averaged, counts
    for name, long_name in COUNTS.items():
        attributes = {"long_name": long_name, "units": "1"}
        variables[name] = dims, results[name].astype(np.int64), attributes
    coordinates: dict[Any, Any] = {
        name: coordinate
        for name, coordinate in geometry.drop_indexes(
            ["epoch", "iteration"], errors="ignore"
        ).coords.items()
        if "step" not in coordinate.dims
    }
    coordinates[label[0]] = label
    return xr.Dataset(variables, coordinates, geometry.attrs)


def _eager_means(
    averaged: Averaged,
    used: tuple[xr.DataArray, ...],
    groups: Groups,
) -> Any:
    """Return the results of `means` in memory; `used` are the variables, (step, ...)."""
    codes, is_whole, starts = groups
    parts = partial_sums(averaged, codes, *(variable.values for variable in used))
    total = combined_sums(averaged, parts, [np.unique(codes)], len(is_whole))
    return means(averaged, total, is_whole, starts)


def _lazy_means(
    averaged: Averaged,
    used: tuple[xr.DataArray, ...],
    groups: Groups,
) -> Any:
    """Return the results of `means` as a Dask array: sums by chunk, then one task."""
    codes, is_whole, starts = groups
    arrays = [da.asarray(variable.data) for variable in xr.unify_chunks(*used)]  # type: ignore[no-untyped-call]
    chunks, *others = arrays[0].chunks
    arrays = [array.rechunk((chunks, *others)) for array in arrays]
    ends = np.cumsum(chunks)[:-1]
    present = [np.unique(part) for part in np.split(codes, ends)]
    shape = (-1, *[1] * len(others))
    # All chunks of a Dask array must have the same number of axes as the variables.
    numbered = da.from_array(codes.reshape(shape), (chunks, *[1] * len(others)))  # type: ignore[no-untyped-call]
    sums = da.map_blocks(  # type: ignore[no-untyped-call]
        lambda numbers, *variables: partial_sums(averaged, numbers.ravel(), *variables),
        numbered,
        *arrays,
        dtype=np.float64,
        new_axis=0,
        chunks=((averaged.n_partial,), tuple(map(len, present)), *others),
        meta=np.empty((0,) * (len(others) + 2)),
    )
    whole = sums.rechunk({1: -1})
    return da.map_blocks(  # type: ignore[no-untyped-call]
        lambda parts: means(
            averaged,
            combined_sums(averaged, parts, present, len(is_whole)),
            is_whole,
            starts,
        ),
        whole,
        dtype=np.float64,
        chunks=((averaged.n_results,), (len(starts),), *others),
        meta=np.empty((0,) * (len(others) + 2)),
    )


def _groups(geometry: xr.Dataset, codes: Codes) -> Groups:
    """Cut ranges of steps, numbered by `codes`, where windows or epochs begin."""
    windows, n_steps = geometry.attrs.get(WINDOW_STARTS), geometry.attrs.get("n_steps")
    if n_steps is None:
        n_ranges = int(codes[-1]) + 1
        return Groups(codes, np.zeros(n_ranges, bool), np.arange(n_ranges))
    if windows is None:
        labels, epochs = np.unique(geometry["epoch"].values, return_inverse=True)
        blocks = epochs
        held = np.bincount(epochs)
        lengths = np.where(_whole_epochs(geometry, labels, epochs), held, -1)
    else:
        starts = np.asarray(windows)
        blocks = np.searchsorted(starts, geometry["step"].values, side="right") - 1
        lengths = np.diff(starts, append=n_steps)
    cut = codes * len(lengths) + blocks
    numbers, groups, counts = np.unique(cut, return_inverse=True, return_counts=True)
    ranges, own = np.divmod(numbers, len(lengths))
    return Groups(
        groups, counts == lengths[own], np.flatnonzero(np.diff(ranges, prepend=-1))
    )


def _whole_epochs(
    geometry: xr.Dataset, labels: npt.NDArray[Any], codes: Codes
) -> npt.NDArray[np.bool_]:
    """Return for each epoch whether the dataset holds all of its steps, (epoch,)."""
    # A result holds every step of a run, and attrs["n_steps"] says how many these are. An
    # epoch is whole if its steps follow each other, and the neighbouring steps are held too
    # or do not exist.
    n_steps = geometry.attrs.get("n_steps")
    if "step" not in geometry.coords or n_steps is None:
        return np.zeros(len(labels), bool)
    steps = geometry["step"].values
    first = np.full(len(labels), np.iinfo(np.int64).max)
    last = np.full(len(labels), -1)
    np.minimum.at(first, codes, steps)
    np.maximum.at(last, codes, steps)
    follows = np.bincount(codes, minlength=len(labels)) == last - first + 1
    begins = (first == 0) | np.isin(first - 1, steps)
    if "iteration" in geometry.coords:
        begins |= _first_iterations(geometry, codes, len(labels)) == 0
    ends = (last == n_steps - 1) | np.isin(last + 1, steps)
    # A selected epoch has lost its neighbours.
    length = geometry.attrs.get("epoch_steps")
    has_all = last - first + 1 == length if length is not None else False
    result: npt.NDArray[np.bool_] = follows & ((begins & ends) | has_all)
    return result


def _first_iterations(
    geometry: xr.Dataset, codes: Codes, n_epochs: int
) -> npt.NDArray[np.int64]:
    """Return the smallest iteration of every epoch, -1 if one is lost, (epoch,)."""
    found = np.full(n_epochs, np.iinfo(np.int64).max)
    np.minimum.at(found, codes, geometry["iteration"].values)
    return found
