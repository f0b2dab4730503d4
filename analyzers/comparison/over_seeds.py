"""Compare configurations, each of which was trained with one seed or several."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import xarray as xr

from analyzers._engine.arrays.geometry import QUANTITIES
from analyzers.comparison.arrays.seeds import over_runs, verdicts, welch
from analyzers.comparison.compare import METRICS, compare_geometries, mid_run
from analyzers.comparison.grouping import (
    Configuration,
    configurations,
    given_configurations,
)
from analyzers.comparison.run_list import as_runs
from analyzers.geometry.path_geometry import DESCRIPTIONS, path_geometry
from trajstore.format.arrays import DESCRIPTIONS as SCALARS
from trajstore.reading.accepts_path import RunLike
from trajstore.reading.target import TargetLike

DIM: Final = "configuration"

MID_RUN: Final = "_mid_run"
"""Suffix of the summary of a run's middle half."""

DIFFERENCE: Final = "_difference"

PARTS: Final = {
    "": "{} minus that of the first configuration, mid-run",
    "_stderr": "standard error of the difference of {}",
    "_dof": "degrees of freedom of the difference of {}",
    "_low": "lower end of the 95 % interval of the difference of {}",
    "_high": "upper end of the 95 % interval of the difference of {}",
    "_verdict": "whether {} is higher or lower than that of the first configuration",
}
"""Long names of what is known of a difference, by suffix."""


def compare_over_seeds(
    runs: Iterable[RunLike] | Mapping[str, Iterable[RunLike]],
    *,
    by: Sequence[str] | None = None,
    reference: TargetLike = "final",
) -> xr.Dataset:
    r"""Average runs that differ in their seeds, and compare the means with the first ones.

    Parameters
    ----------
    runs : iterable of runs, or mapping from str to iterable of runs
        Runs as returned by `trajstore.open_run`, or paths of stores. A mapping names the
        configurations. Otherwise runs with equal settings, except for seeds, belong to one.
    by : sequence of str, optional
        Names of the settings that make a configuration, such as ``["optimizer.class"]``;
        other settings may differ within it. The names are those of the coordinates of
        `compare`. Default: all settings whose names do not contain "seed".
    reference : str, int, Run or mapping, default: "final"
        The target x* of every run, as in `path_geometry`.

    Returns
    -------
    xarray.Dataset
        Lazy. ``configuration`` holds the names, in the order of their first runs: those given,
        or what the names of their stores have in common. Float64 with units of 1, and NaN
        where no run has a value:

        - ``gamma``, ``rsi``, ``eb``, ``lolr`` and ``distance`` (configuration, epoch): the
          means of `epoch_means`, averaged over runs, with standard errors (``_stderr``); and
          ``loss``, ``lr``, ``grad_norm`` and ``update_norm``, if they were recorded;
        - ``n_runs`` (configuration, epoch): the number of runs that have the epoch;
        - for each of them, ``_mid_run`` and ``_mid_run_stderr`` (configuration): the same for
          the summaries of `mid_run`;
        - ``_difference``, ``_difference_stderr``, ``_difference_dof``, ``_difference_low``
          and ``_difference_high`` (configuration): the mid-run mean minus that of the first
          configuration, its standard error, its degrees of freedom, and the ends of its 95 %
          interval; and ``_difference_verdict``, text: ``"higher"`` or ``"lower"`` if the
          interval does not contain 0, else ``"inconclusive"``, or ``"unknown"`` if one of the
          two configurations has a single run; the first one has none.

        The coordinate ``runs`` lists the names of the runs of every configuration.

    Raises
    ------
    ValueError
        If there are no runs, if a configuration of the mapping has none, if both a mapping and
        `by` are given, and in the cases that `path_geometry` lists.
    KeyError
        If the runs have no such setting, and in the cases that `path_geometry` lists.

    Notes
    -----
    For n runs with the standard deviation s, the standard error of their mean is
    :math:`s / \sqrt{n}`. The spread of the runs contains the errors of their estimates. Two or
    three runs may agree by chance, so the error is at least that of the estimates,
    :math:`\sqrt{\sum_i \sigma_i^2} / n`. A single run has only this error, which does not say
    what another seed would change.

    A difference has the error :math:`\sqrt{s_a^2 / n_a + s_b^2 / n_b}` and the degrees of
    freedom of Welch's t, 1 to :math:`n_a + n_b - 2`. With three runs of each, the 95 %
    interval reaches 2.8 to 4.3 standard errors to both sides; with two of each, 4.3 to 12.7.
    One in twenty verdicts on equal configurations is "higher" or "lower" by chance, so a table
    of many quantities should be read with care.

    Examples
    --------
    >>> import analyzers
    >>> found = analyzers.compare_over_seeds({"a": [example_run], "b": [example_run]})
    >>> found.gamma_difference_verdict.compute().values.tolist()
    ['', 'unknown']
    """
    if isinstance(runs, Mapping):
        if by is not None:
            raise ValueError(
                "`runs` names the configurations, and `by` would choose others; give one of both."
            )
        groups = {name: list(of_name) for name, of_name in runs.items()}
        found = given_configurations(groups)
        opened = as_runs([run for of_name in groups.values() for run in of_name])
    else:
        opened = as_runs(runs)
        found = configurations(opened, by)
    geometries = [path_geometry(run, reference=reference) for run in opened]
    return average_configurations(compare_geometries(opened, geometries), found)


def average_configurations(
    compared: xr.Dataset, found: Sequence[Configuration]
) -> xr.Dataset:
    """Average the result of `compare` over the runs of each configuration."""
    middle = mid_run(compared)
    names = [name for name in (*QUANTITIES, *METRICS) if name in compared]
    variables: dict[str, xr.DataArray] = {}
    for name in names:
        by_epoch = _averages(compared, name, found)
        variables |= {name: by_epoch[0], f"{name}_stderr": by_epoch[1]}
        summary = _averages(middle, name, found)
        mid = f"{name}{MID_RUN}"
        variables |= {mid: summary[0], f"{mid}_stderr": summary[1]}
        variables |= _difference(name, *summary)
    held = compared["n_steps"] > 0
    n_runs = [held.isel(run=list(c.runs)).sum("run") for c in found]
    variables["n_runs"] = xr.concat(n_runs, DIM).assign_attrs(
        long_name="number of runs that have the epoch", units="1"
    )
    files = compared["run"].values
    coordinates = {
        DIM: np.array([c.name for c in found], object),
        "runs": (
            DIM,
            np.array([", ".join(str(files[i]) for i in c.runs) for c in found], object),
        ),
    }
    result = xr.Dataset(variables).drop_vars("run", errors="ignore")
    for name in names:
        _label(result, name)
    return result.assign_coords(coordinates).assign_attrs(compared.attrs)


def _averages(
    dataset: xr.Dataset, name: str, found: Sequence[Configuration]
) -> list[xr.DataArray]:
    """Return means, standard errors and numbers of runs, each (configuration, ...)."""
    value = dataset[name].reset_coords(drop=True)
    unknown = value * np.nan
    stderr = dataset.get(f"{name}_stderr", unknown).reset_coords(drop=True)
    parts = [
        xr.apply_ufunc(
            over_runs,
            *(v.isel(run=list(c.runs)) for v in (value, stderr)),
            input_core_dims=[["run"], ["run"]],
            output_core_dims=[[], [], []],
            dask="parallelized",
            dask_gufunc_kwargs={"allow_rechunk": True},
            output_dtypes=[np.float64] * 3,
        )
        for c in found
    ]
    return [xr.concat(list(of_all), DIM) for of_all in zip(*parts, strict=True)]


def _difference(
    name: str, mean: xr.DataArray, stderr: xr.DataArray, n: xr.DataArray
) -> dict[str, xr.DataArray]:
    """Return the difference from the first configuration, and what is known of it."""
    firsts = [each.isel({DIM: 0}) for each in (mean, stderr, n)]
    *numbers, _, _ = results = xr.apply_ufunc(
        welch,
        *(mean, stderr, n, *firsts),
        output_core_dims=[[]] * 5,
        dask="parallelized",
        output_dtypes=[np.float64] * 5,
    )
    is_first = xr.DataArray(np.arange(mean.sizes[DIM]) == 0, dims=DIM)
    value, error, dof, low, high = (
        part if part is numbers[2] else part.where(~is_first, 0 * part)
        for part in results
    )
    verdict = xr.apply_ufunc(
        verdicts, low, high, dask="parallelized", output_dtypes=[object]
    ).where(~is_first, "")
    parts = (value, error, dof, low, high, verdict)
    return {
        f"{name}{DIFFERENCE}{suffix}": part
        for suffix, part in zip(PARTS, parts, strict=True)
    }


def _label(result: xr.Dataset, name: str) -> None:
    """Give the variables of a quantity long names and units."""
    described = DESCRIPTIONS.get(name) or SCALARS.get(name, (name, ""))
    labels = {
        name: f"mean over runs: {described[0]}",
        f"{name}_stderr": f"standard error of the mean of {name} over runs",
        f"{name}{MID_RUN}": f"mean over runs, mid-run: {described[0]}",
        f"{name}{MID_RUN}_stderr": f"standard error of the mid-run mean of {name}",
    } | {
        f"{name}{DIFFERENCE}{suffix}": text.format(name)
        for suffix, text in PARTS.items()
    }
    for variable, long_name in labels.items():
        units = {} if variable.endswith("_verdict") else {"units": "1"}
        result[variable].attrs = {"long_name": long_name} | units
