"""Select steps by epoch and iteration, or arrange them in an epoch-iteration grid."""

from collections.abc import Hashable, Mapping, Sequence
from functools import reduce
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing
from xarray.core.indexing import IndexSelResult

from trajstore.format.arrays import STEP

Array = npt.NDArray[Any]

EPOCH: Final = "epoch"
ITERATION: Final = "iteration"


def index_epochs(dataset: xr.Dataset) -> xr.Dataset:
    """Make steps selectable by epoch and iteration.

    The result supports ``.sel(epoch=3)``, ``.sel(epoch=slice(3, 5))`` and ``.sel(epoch=3,
    iteration=slice(0, 10))``; slices include both ends. Datasets are still aligned by
    ``step``.

    Parameters
    ----------
    dataset : xarray.Dataset
        A dataset with the coordinates ``epoch`` and ``iteration`` along ``step``, such as
        the result of an analysis that was read back from a file. The datasets that
        `trajstore.Run.steps` and the analyses return already have these indexes.

    Returns
    -------
    xarray.Dataset
        The same data, lazy where `dataset` is lazy; only the two coordinates are loaded.

    Raises
    ------
    KeyError
        If a coordinate is missing.
    """
    _check_coordinates(dataset)
    return dataset.drop_indexes([EPOCH, ITERATION], errors="ignore").set_xindex(
        [EPOCH, ITERATION], EpochIndex, steps=dataset[STEP].to_index()
    )


def epoch_grid(dataset: xr.Dataset) -> xr.Dataset:
    """Arrange steps in a grid of epochs and iterations.

    Parameters
    ----------
    dataset : xarray.Dataset
        A dataset with the coordinates ``epoch`` and ``iteration`` along ``step``.

    Returns
    -------
    xarray.Dataset
        The same data, with the dimensions ``epoch`` and ``iteration`` instead of ``step``.
        Values are NaN where an epoch has no such iteration; integers then become float64.
        Steps whose epoch is lost (-1) are left out. Dask arrays stay Dask arrays, and
        stored values are read when they are used.

    Raises
    ------
    KeyError
        If a coordinate is missing.
    ValueError
        If two steps have the same epoch and iteration.
    """
    _check_coordinates(dataset)
    epochs, iterations = dataset[EPOCH].values, dataset[ITERATION].values
    steps = np.flatnonzero((epochs >= 0) & (iterations >= 0))
    rows, row = np.unique(epochs[steps], return_inverse=True)
    columns, column = np.unique(iterations[steps], return_inverse=True)
    positions = np.full((len(rows), len(columns)), -1)
    positions[row, column] = steps
    if (n_cells := (positions >= 0).sum()) < len(steps):
        raise ValueError(
            f"{len(steps) - n_cells} of {len(steps)} steps have the same epoch and "
            "iteration as another step. Call epoch_grid for one run at a time."
        )
    cells = xr.Variable((EPOCH, ITERATION), positions)
    flat = dataset.drop_vars([EPOCH, ITERATION]).reset_coords()
    gridded = {
        name: _on_grid(variable, cells) if STEP in variable.dims else variable
        for name, variable in flat.variables.items()
    }
    grid = xr.Dataset(gridded, {EPOCH: rows, ITERATION: columns}, dataset.attrs)
    return grid.set_coords([name for name in dataset.coords if name in grid])


def _check_coordinates(dataset: xr.Dataset) -> None:
    missing = [name for name in (EPOCH, ITERATION, STEP) if name not in dataset.coords]
    if missing:
        raise KeyError(
            f"No coordinates {missing} in the dataset; it has {list(dataset.coords)}. "
            "Run.steps and analyzers.path_geometry return datasets that have them."
        )


def _on_grid(variable: xr.Variable, cells: xr.Variable) -> xr.Variable:
    """Return a variable at positions along ``step``, NaN where a position is negative."""
    variable = variable.transpose(STEP, ...)
    dims = (*cells.dims, *variable.dims[1:])
    if variable.chunks is None:
        lazy = indexing.LazilyIndexedArray(_Grid(variable, cells.values))
        return xr.Variable(dims, lazy, variable.attrs)
    is_filled = cells.values >= 0
    taken = variable.isel({STEP: np.where(is_filled, cells.values, 0).reshape(-1)})
    grid = xr.Variable(dims, taken.data.reshape(*is_filled.shape, *taken.shape[1:]))
    if not is_filled.all():
        grid = grid.where(cells.copy(data=is_filled))  # type: ignore[no-untyped-call]
    return xr.Variable(dims, grid.data, variable.attrs)


class _Grid(BackendArray):
    """A lazy variable whose steps are arranged in a grid of positions."""

    def __init__(self, variable: xr.Variable, positions: Array) -> None:
        self._variable = variable
        self._positions = positions
        self.shape = (*positions.shape, *variable.shape[1:])
        is_whole = bool((positions >= 0).all())
        is_float = np.issubdtype(variable.dtype, np.floating)
        self.dtype = variable.dtype if is_whole or is_float else np.dtype(np.float64)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Array:
        values: Array = indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )
        return values

    def _read(self, key: tuple[Any, ...]) -> Array:
        row, column, *inner = key
        # An integer in the key drops its axis.
        cells = self._positions[row][..., column]
        wanted = cells.reshape(-1)
        is_filled = wanted >= 0
        indexers: dict[Any, Any] = dict(
            zip(self._variable.dims[1:], inner, strict=True)
        )
        values = self._variable.isel({STEP: wanted[is_filled], **indexers}).values
        out = np.empty((len(wanted), *values.shape[1:]), self.dtype)
        out[is_filled] = values
        if not is_filled.all():
            out[~is_filled] = np.nan
        return out.reshape(*cells.shape, *values.shape[1:])


class EpochIndex(xr.Index):
    """Index that selects steps by epoch and iteration, and aligns them by step."""

    def __init__(
        self, steps: pd.Index, coordinates: Mapping[Hashable, Array], dim: Hashable
    ) -> None:
        self._steps = steps
        self._coordinates = dict(coordinates)
        self._dim = dim

    @classmethod
    def from_variables(
        cls, variables: Mapping[Any, xr.Variable], *, options: Mapping[str, Any]
    ) -> Self:
        """Build the index; the option ``steps`` holds the labels of the steps."""
        (dim,) = {dim for variable in variables.values() for dim in variable.dims}
        coordinates = {name: variable.values for name, variable in variables.items()}
        return cls(options["steps"], coordinates, dim)

    def create_variables(
        self, variables: Mapping[Any, xr.Variable] | None = None
    ) -> dict[Any, Any]:
        """Return the coordinates, with the attributes of the given variables."""
        attributes = {name: v.attrs for name, v in (variables or {}).items()}
        # An IndexVariable does not become a Dask array when the dataset is chunked.
        return {
            name: xr.IndexVariable(  # type: ignore[no-untyped-call]
                self._dim, values, attributes.get(name)
            )
            for name, values in self._coordinates.items()
        }

    def to_pandas_index(self) -> pd.Index:
        """Return epoch and iteration as one pandas index."""
        return pd.MultiIndex.from_arrays(
            list(self._coordinates.values()), names=list(self._coordinates)
        )

    def isel(self, indexers: Mapping[Any, Any]) -> "EpochIndex | None":
        """Return the index of the selected steps, or None if the dimension is dropped."""
        indexer = indexers[self._dim]
        if isinstance(indexer, xr.Variable):
            if indexer.dims != (self._dim,):
                return None
            indexer = indexer.values
        if not isinstance(indexer, slice) and np.ndim(indexer) == 0:
            return None
        return self._taken(indexer)

    def sel(self, labels: dict[Any, Any], **options: Any) -> IndexSelResult:
        """Return the positions of steps by epoch, iteration or both."""
        # A label is a number, a list of numbers, or a slice that includes both ends.
        if any(option is not None for option in options.values()):
            raise ValueError(
                "Epochs and iterations are selected exactly; omit `method` and "
                "`tolerance`."
            )
        masks = [
            _matches(name, self._coordinates[name], v) for name, v in labels.items()
        ]
        positions = np.flatnonzero(reduce(np.logical_and, masks))
        selects_one_step = len(labels) == len(self._coordinates) and not any(
            isinstance(v, slice) or np.ndim(v) for v in labels.values()
        )
        if selects_one_step and len(positions) != 1:
            raise KeyError(f"{len(positions)} steps have {labels}; expected one.")
        if selects_one_step:
            return IndexSelResult({self._dim: int(positions[0])})
        return IndexSelResult({self._dim: _as_slice(positions)})

    def equals(
        self, other: xr.Index, *, exclude: frozenset[Hashable] | None = None
    ) -> bool:
        """Whether another index holds the same steps in the same epochs."""
        del exclude
        return (
            isinstance(other, EpochIndex)
            and self._steps.equals(other._steps)
            and all(
                np.array_equal(values, other._coordinates.get(name, ()))
                for name, values in self._coordinates.items()
            )
        )

    def join(self, other: Self, how: str = "inner") -> Self:
        """Return the index of the steps in both indexes, or in either if `how` is outer."""
        if how == "inner":
            return self._taken(
                self._steps.get_indexer(self._steps.intersection(other._steps))
            )
        steps = self._steps.union(other._steps)
        own_rows = self._steps.get_indexer(steps)
        other_rows = other._steps.get_indexer(steps)
        coordinates = {
            name: np.where(
                own_rows >= 0, values[own_rows], other._coordinates[name][other_rows]
            )
            for name, values in self._coordinates.items()
        }
        return type(self)(steps, coordinates, self._dim)

    def reindex_like(self, other: Self, **_options: Any) -> dict[Hashable, Any]:
        """Return the positions of another index's steps, -1 for absent steps."""
        return {self._dim: self._steps.get_indexer(other._steps)}

    @classmethod
    def concat(
        cls,
        indexes: Sequence[Self],
        dim: Hashable,
        positions: Any = None,
    ) -> Self:
        """Concatenate indexes, or interleave them by `positions`."""
        steps = indexes[0]._steps.append([index._steps for index in indexes[1:]])
        coordinates = {
            name: np.concatenate([index._coordinates[name] for index in indexes])
            for name in indexes[0]._coordinates
        }
        whole = cls(steps, coordinates, dim)
        if positions is None:
            return whole
        return whole._taken(
            np.argsort(np.concatenate([np.asarray(p) for p in positions]))
        )

    def rename(
        self, name_dict: Mapping[Any, Hashable], dims_dict: Mapping[Any, Hashable]
    ) -> "EpochIndex":
        """Return the index under other names."""
        coordinates = {
            name_dict.get(name, name): v for name, v in self._coordinates.items()
        }
        return EpochIndex(self._steps, coordinates, dims_dict.get(self._dim, self._dim))

    def _taken(self, indexer: Any) -> Self:
        coordinates = {
            name: values[indexer] for name, values in self._coordinates.items()
        }
        return type(self)(self._steps[indexer], coordinates, self._dim)


def _matches(name: Hashable, values: Array, label: Any) -> npt.NDArray[np.bool_]:
    """Return a mask of the values that a label selects."""
    if isinstance(label, slice):
        if label.step is not None:
            raise ValueError(f"A slice of {name!r} takes no step, got {label}.")
        first = -np.inf if label.start is None else label.start
        last = np.inf if label.stop is None else label.stop
        return (values >= first) & (values <= last)
    wanted = np.asarray(label)
    if len(absent := np.setdiff1d(wanted, values)):
        available = (
            f"{values.min()} to {values.max()}" if len(values) else "none (no steps)"
        )
        raise KeyError(f"No {name} {absent.tolist()}; expected {available}.")
    return np.isin(values, wanted)


def _as_slice(positions: Array) -> Array | slice:
    """Return positions as a slice, which is read faster, if they are consecutive."""
    n = len(positions)
    if n and positions[-1] - positions[0] == n - 1:
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions
