"""Put the geometry and the scalars of several runs side by side."""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import xarray as xr

from analyzers._engine.arrays.epoch_sums import N_AVERAGED
from analyzers._engine.arrays.geometry import QUANTITIES
from analyzers._engine.labels import describe
from analyzers.comparison.run_list import as_runs, run_names
from analyzers.comparison.settings import different_settings
from analyzers.geometry.epoch_means import epoch_means
from analyzers.geometry.mid_run import DIFFERENCE, used_epochs
from analyzers.geometry.mid_run import mid_run as of_quantities
from analyzers.geometry.path_geometry import DESCRIPTIONS, path_geometry
from analyzers.geometry.time_axis import (
    N_RANGES,
    WINDOW_STARTS,
    by_time,
    has_one_epoch,
)
from trajstore.format.arrays import DESCRIPTIONS as SCALARS
from trajstore.format.arrays import STEP
from trajstore.reading.accepts_path import RunLike
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike

METRICS: Final = ("loss", "lr", "grad_norm", "update_norm")
"""Scalars whose means are compared, where a run has recorded them."""


def compare(runs: Iterable[RunLike], *, reference: TargetLike = "final") -> xr.Dataset:
    r"""Return the geometry of several runs by epoch, and its difference from the first run.

    Parameters
    ----------
    runs : iterable of trajstore.Run, str or os.PathLike
        The runs to compare, or the paths of their stores. Their lengths and their
        architectures may differ.
    reference : str, int, Run or mapping, default: "final"
        The target x* of every run, as in `path_geometry`.

    Returns
    -------
    xarray.Dataset
        Lazy, float64, with units of 1 and the dimensions ``run`` and ``epoch``. Values are NaN
        where a run has no such epoch. If no run has epochs, 20 ranges of steps take their place,
        numbered by their first steps, and ``attrs["time"]`` is "step" instead of "epoch".

        - ``gamma``, ``rsi``, ``eb``, ``lolr`` and ``distance``: the means of `epoch_means`,
          each with its standard error, its smallest and its largest step (``_stderr``,
          ``_min``, ``_max``);
        - for each of them, ``_difference``: its mean minus that of the first run in the same
          epoch, with its standard error ``_difference_stderr``;
        - ``loss``, ``lr``, ``grad_norm`` and ``update_norm``: means over the epoch, if at
          least one run has recorded the scalar;
        - ``n_steps``: the number of averaged steps, 0 without the epoch.

        ``run`` holds the shortest ends of the paths that tell the runs apart. Settings that
        differ between the runs are further coordinates: keys of ``Recorder(attrs=...)``, with
        dots between the names of nested ones (the settings of ``traj-train`` have no prefix),
        ``optimizer.class`` and its settings, ``recorder.seed`` and other options of the
        recorder, and ``steps``, ``epochs``, ``parameters``, ``steps_per_epoch`` and
        ``status``. A setting with the name of a variable ends in ``_setting``. Characters of
        names other than letters, digits and ``_.+-`` become underscores.

    Raises
    ------
    ValueError
        If there are no runs, and in the cases that `path_geometry` lists.
    KeyError, TypeError
        In the cases that `path_geometry` lists.

    Notes
    -----
    Epochs are compared by their numbers. The standard error of a difference is
    :math:`\sqrt{s_1^2 + s_2^2}`, as for independent errors. Errors of runs that were recorded
    with different seeds are independent. Runs recorded with the same seed share their random
    signs; their errors agree as far as both the gradients and the residuals of the two runs do
    at the same step, so differences of nearly equal runs are more precise than stated. A run
    minus itself is exactly 0.

    Examples
    --------
    >>> import analyzers
    >>> compared = analyzers.compare([example_run, example_run])
    >>> float(abs(compared.gamma_difference).max())
    0.0
    """
    opened = as_runs(runs)
    return compare_geometries(
        opened, [path_geometry(run, reference=reference) for run in opened]
    )


def compare_geometries(
    runs: Sequence[Run], geometries: Sequence[xr.Dataset]
) -> xr.Dataset:
    """Compare runs whose geometry is computed or opened already."""
    parts = []
    size = _range_size(geometries)
    for run, geometry in zip(runs, geometries, strict=True):
        means = epoch_means(_in_ranges(geometry, size))
        counts = [f"{name}{N_AVERAGED}" for name in QUANTITIES]
        means = means.drop_vars(["n_missing", "n_imprecise", *counts])
        # Epochs of damaged chunks are -1.
        known = means.isel(epoch=means["epoch"].values >= 0)
        parts.append(known.assign(_scalar_means(run, size)))
    aligned = xr.align(*parts, join="outer")
    found = dict.fromkeys(name for part in parts for name in part.data_vars)
    empty = aligned[0]["gamma"] * np.nan
    dataset = xr.concat(
        [
            part.assign({n: empty for n in found if n not in part}).drop_attrs()
            for part in aligned
        ],
        "run",
    )
    dataset["n_steps"] = dataset["n_steps"].fillna(0)
    dataset = dataset.assign(_differences(dataset, runs, geometries))
    dataset = _described(dataset.assign_coords(run=np.array(run_names(runs), object)))
    coordinates = {
        (f"{name}_setting" if name in {*dataset.variables} else name): ("run", values)
        for name, values in different_settings(runs).items()
    }
    references = dict.fromkeys(g.attrs["reference"] for g in geometries)
    inside = [geometry.attrs.get("reference_epoch") for geometry in geometries]
    if size is None and any(epoch is not None for epoch in inside):
        ends = [np.nan if epoch is None else float(epoch) for epoch in inside]
        dataset.attrs["reference_epoch"] = ends
    return dataset.assign_coords(coordinates).assign_attrs(
        runs=[run.location for run in runs],
        reference=", ".join(references),
        time="epoch" if size is None else "step",
    )


def _range_size(geometries: Sequence[xr.Dataset]) -> int | None:
    """Return the steps in a range if no run has epochs, None if one has."""
    if not all(has_one_epoch(geometry["epoch"].values) for geometry in geometries):
        return None
    return -(-max(geometry.sizes[STEP] for geometry in geometries) // N_RANGES)


def _in_ranges(geometry: xr.Dataset, size: int | None) -> xr.Dataset:
    """Return a geometry whose coordinate ``epoch`` numbers ranges of steps, if there is a size."""
    if size is None:
        return geometry
    ranges, _ = by_time(geometry, size=size)
    kept = dict(geometry.attrs)
    if WINDOW_STARTS not in kept:
        # Covariances of errors belong to whole epochs.
        kept.pop("n_steps", None)
    return ranges.drop_attrs(deep=False).assign_attrs(kept)


def _scalar_means(run: Run, size: int | None) -> dict[str, xr.DataArray]:
    """Return the means of scalars over epochs, or over ranges of steps, lazy."""
    names = [name for name in METRICS if name in run.metrics]
    steps = run.steps[names].drop_vars("window").chunk({STEP: 1 << 16})
    steps = steps.drop_indexes(["epoch", "iteration"])
    if size is not None:
        steps, _ = by_time(steps, size=size)
    return {name: steps[name].groupby("epoch").mean().drop_attrs() for name in names}


def _differences(
    dataset: xr.Dataset, runs: Sequence[Run], geometries: Sequence[xr.Dataset]
) -> dict[str, xr.DataArray]:
    """Return the quantities minus those of the first run, with their standard errors."""
    identities = [g.attrs["computed_from"] for g in geometries]
    is_first = xr.DataArray(
        [
            run.location == runs[0].location and identity == identities[0]
            for run, identity in zip(runs, identities, strict=True)
        ],
        dims="run",
    )
    variables = {}
    for name in QUANTITIES:
        value, stderr = dataset[name], dataset[f"{name}_stderr"]
        difference = value - value.isel(run=0)
        error = (stderr**2 + stderr.isel(run=0) ** 2) ** 0.5
        variables[f"{name}{DIFFERENCE}"] = difference
        variables[f"{name}{DIFFERENCE}_stderr"] = error.where(~is_first, 0 * error)
    return variables


def _described(dataset: xr.Dataset) -> xr.Dataset:
    labels: dict[str, str | tuple[str, str]] = {}
    for name, (long_name, definition) in DESCRIPTIONS.items():
        mean = f"mean over the epoch: {long_name}"
        labels |= {
            name: (mean, definition),
            f"{name}_min": (f"smallest step: {long_name}", definition),
            f"{name}_max": (f"largest step: {long_name}", definition),
            f"{name}{DIFFERENCE}": f"{name} minus that of the first run",
        }
    labels |= {
        name: f"mean over the epoch: {SCALARS.get(name, (name, ''))[0]}"
        for name in METRICS
    }
    return describe(dataset, labels | {"n_steps": "number of averaged steps"})


def mid_run(compared: xr.Dataset) -> xr.Dataset:
    """Return `analyzers.mid_run` of each run, differences from the first, and mean scalars."""
    result = of_quantities(compared)
    used = used_epochs(compared)
    for name in METRICS:
        if name in compared:
            result[name] = compared[name].where(used).mean("epoch")
    return result
