"""Open runs and results with `xarray.open_dataset` and `xarray.open_datatree`."""

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, Final

import xarray as xr
import zarr
from xarray.backends import BackendEntrypoint

from trajstore.format.arrays import MAX_CHUNK_ROWS, STEP
from trajstore.reading.epochs import EPOCH, ITERATION
from trajstore.reading.results import path_component
from trajstore.reading.run import Run, open_run
from trajstore.store.location import locate, open_store
from trajstore.store.opening import (
    RESULTS_SUFFIX,
    is_results_directory,
    is_run_directory,
)

STEPS: Final = "steps"
WINDOWS: Final = "windows"
MEASUREMENTS: Final = "measurements"

LONG_NAMES: Final = {
    STEP: "number of optimizer steps before",
    EPOCH: "epoch of the step",
    ITERATION: "steps since the start of the epoch",
    "window": "window of the step",
    "start": "first step of the window",
    "stop": "step after the last step of the window",
    "weights": "weight of the layer in the sketch",
    "probes": "random projections of the anchor",
}
"""Long names of coordinates, and of the variables of windows."""


class TrajstoreBackend(BackendEntrypoint):
    """Engine ``"trajstore"`` of xarray, for the stores of runs and of their results."""

    description: ClassVar[str] = "Open runs that trajstore recorded, and their results"
    url: ClassVar[str] = ""
    supports_groups: ClassVar[bool] = True

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether a path is a local store of a run, or of results next to a run."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        return is_run_directory(filename_or_obj) or is_results_directory(
            filename_or_obj
        )

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
    ) -> xr.Dataset:
        """Open one group, lazily.

        Parameters
        ----------
        filename_or_obj : str or os.PathLike
            Path or URL of the store of a run, or of its results (``run.analysis.zarr``).
        drop_variables : str or iterable of str, optional
            Variables to leave out.
        group : str, optional
            Of a run: ``"steps"`` (default), ``"windows"`` or ``"measurements/NAME"``. Of
            results: the name of a group, such as ``"final"``.

        Returns
        -------
        xarray.Dataset
            Lazy. The coordinates ``epoch`` and ``iteration`` of steps have no index, so that
            ``to_dataframe`` keeps them; `trajstore.index_epochs` makes them selectable.

        Raises
        ------
        KeyError
            If there is no such group; the message lists the existing ones.
        ValueError
            If `group` is missing for a store of results.
        """
        found = _groups(filename_or_obj)
        name = STEPS if group is None else group.strip("/")
        if group is None and STEPS not in found:
            raise ValueError(
                f"{os.fspath(filename_or_obj)} holds the groups {[*found]}; choose one with "
                "group=."
            )
        if name.startswith(f"{MEASUREMENTS}/") and name not in found:
            name = _measurement_path(name.removeprefix(f"{MEASUREMENTS}/"))
        if name not in found:
            raise KeyError(
                f"No group {group!r} in {os.fspath(filename_or_obj)}; it has {[*found]}."
            )
        return found[name]().drop_vars(_as_list(drop_variables), errors="ignore")

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
    ) -> dict[str, xr.Dataset]:
        """Open all groups, lazily; return them by path."""
        dropped = _as_list(drop_variables)
        groups = {"/": xr.Dataset(attrs={"location": locate(filename_or_obj)})}
        for name, open_group in _groups(filename_or_obj).items():
            groups[f"/{name}"] = open_group().drop_vars(dropped, errors="ignore")
        return groups

    def open_datatree(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
    ) -> xr.DataTree:
        """Open all groups as a tree, lazily."""
        groups = self.open_groups_as_dict(
            filename_or_obj, drop_variables=drop_variables
        )
        return xr.DataTree.from_dict(groups)


def _as_list(names: str | Iterable[str] | None) -> list[str]:
    if names is None:
        return []
    return [names] if isinstance(names, str) else list(names)


def _measurement_path(name: str) -> str:
    """Return the group of a measurement, whose name may hold characters such as slashes."""
    return f"{MEASUREMENTS}/{path_component(name)}"


def _groups(path: str | os.PathLike[str]) -> dict[str, Callable[[], xr.Dataset]]:
    """Return functions that open the groups of a run or of results, by name."""
    location = locate(path)
    if location.endswith(RESULTS_SUFFIX):
        return {name: partial(_results, location, name) for name in _names(location)}
    run = open_run(location)
    groups: dict[str, Callable[[], xr.Dataset]] = {
        STEPS: partial(_steps, run),
        WINDOWS: partial(_windows, run),
    }
    for name in run.measurements:
        groups[_measurement_path(name)] = partial(_steps, run.measured(name))
    return groups


def _names(location: str) -> list[str]:
    """Return the names of the groups of results."""
    store = open_store(location, read_only=True)
    try:
        root = zarr.open_group(store, mode="r", use_consolidated=False, zarr_format=3)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There are no results at {location}.") from error
    return sorted(root.group_keys())


def _results(location: str, group: str) -> xr.Dataset:
    dataset = xr.open_zarr(
        open_store(location, read_only=True),
        group=group,
        chunks=None,
        consolidated=False,
        zarr_format=3,
    )
    # The order of files in a directory is arbitrary.
    return _labelled(dataset[sorted(map(str, dataset.data_vars))])


def _steps(run: Run) -> xr.Dataset:
    dataset = _labelled(run.steps.drop_indexes([EPOCH, ITERATION]))
    for variable in dataset.variables.values():
        if STEP in variable.dims:
            variable.encoding["preferred_chunks"] = {STEP: MAX_CHUNK_ROWS}
    return dataset.assign_attrs(created=run.stored.document.created)


def _windows(run: Run) -> xr.Dataset:
    return _labelled(run.windows).assign_attrs(location=run.location)


def _labelled(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset with long names and units of coordinates that have none."""
    labelled = dataset.copy()
    for name, long_name in LONG_NAMES.items():
        if name in labelled.variables and "long_name" not in labelled[name].attrs:
            labelled[name].attrs |= {"long_name": long_name, "units": "1"}
    return labelled
