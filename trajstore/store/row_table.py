"""Append the rows of optimizer steps, or of one measurement, to a store."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import ArraySpec, n_metric_columns, row_arrays
from trajstore.format.run_spec import RunSpec
from trajstore.format.scaled_tables import EXPONENTS, unscaled
from trajstore.store.commit import Committer

Array = npt.NDArray[Any]


class RowTable:
    """The rows of one group: a measurement, or the steps (the root group)."""

    def __init__(
        self,
        arrays: Committer,
        spec: RunSpec,
        group: str = "",
        metrics: Iterable[str] = (),
        n_rows: int = 0,
    ) -> None:
        self._arrays, self._spec, self.group = arrays, spec, group
        self.metrics = list(metrics)  # names of scalars, in the order of their columns
        self.n_rows = n_rows

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """The arrays of the group, by path in the store."""
        n_metrics = len(self.metrics)
        return row_arrays(self._spec, n_metrics=n_metrics, group=self.group)

    def append(
        self,
        rows: Mapping[str, Array],
        scalars: Sequence[Mapping[str, float]],
        first: int | None = None,
    ) -> None:
        """Append rows of every array, and their scalars; missing scalars become NaN."""
        # `first` is the number of the first given row; rows already written are skipped.
        n_known = 0 if first is None else self.n_rows - first
        assert n_known >= 0
        scalars = scalars[n_known:]
        self.n_rows += len(scalars)
        self._register(name for row in scalars for name in row)
        table = np.full((len(scalars), self._n_columns), np.nan)
        if scalars:
            values = [
                [row.get(name, np.nan) for name in self.metrics] for row in scalars
            ]
            table[:, : len(self.metrics)] = values
        new = {name: values[n_known:] for name, values in rows.items()}
        new["scalars"] = table
        self._arrays.append({self._path(name): new[name] for name in new})

    def append_missing(self, places: npt.NDArray[np.int32]) -> None:
        """Append lost rows; `places` has their epoch, iteration and window, int32 (row, 3)."""
        known = dict(zip(("epoch", "iteration", "window"), places.T, strict=True))
        rows = {
            name: np.full((len(places), *array.inner), array.missing, array.dtype)
            for name, array in row_arrays(self._spec, n_metrics=0).items()
            if name != "scalars"
        }
        self.append(rows | known, [{}] * len(places))

    def amend_last(self, scalars: Mapping[str, float]) -> None:
        """Overwrite scalars of the last row."""
        self._register(scalars)
        columns = {self.metrics.index(name): v for name, v in scalars.items()}
        self._arrays.amend_last(self._path("scalars"), columns)

    def last_scalar(self, name: str) -> float:
        """Return a scalar of the last row, 0 if it is missing."""
        if name not in self.metrics or self.n_rows == 0:
            return 0.0
        last = slice(self.n_rows - 1, self.n_rows)
        row = self._arrays.read(self._path("scalars"), last)[0]
        return float(np.nan_to_num(row[self.metrics.index(name)]))

    def products(self, rows: slice) -> Array:
        """Return the products of rows, (row, layer, quantity), without powers of two."""
        tables = self._arrays.read(self._path("tables"), rows)
        if not set(EXPONENTS) <= set(self.metrics) or not self._spec.scaled:
            return tables
        scalars = self._arrays.read(self._path("scalars"), rows)
        exponents = {n: scalars[:, self.metrics.index(n)] for n in EXPONENTS}
        return unscaled(tables, exponents, self._spec)

    def _register(self, names: Iterable[str]) -> None:
        before = self._n_columns
        self.metrics += dict.fromkeys(
            name for name in names if name not in self.metrics
        )
        if self._n_columns > before:
            self._arrays.widen(self._path("scalars"), self._n_columns)

    @property
    def _n_columns(self) -> int:
        return n_metric_columns(len(self.metrics))

    def _path(self, name: str) -> str:
        return f"{self.group}/{name}" if self.group else name
