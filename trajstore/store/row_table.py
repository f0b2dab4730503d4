"""Rows of one kind on their way into a store: those of steps, or of a measurement."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import ArraySpec, n_metric_columns, row_arrays
from trajstore.format.run_spec import RunSpec
from trajstore.store.commit import Commits

Array = npt.NDArray[Any]


class RowTable:
    """Appends rows to the arrays of one group.

    Parameters
    ----------
    commits : Commits
        Of the store.
    spec : RunSpec
        What is recorded.
    group : str, default: ""
        Path of the group: of a measurement, or the root for steps.
    metrics : iterable of str, default: ()
        Names of the scalars that rows have had so far.
    n_rows : int, default: 0
        How many rows there are.

    Attributes
    ----------
    group : str
        As given.
    metrics : list of str
        Names of the scalars, in the order of their columns.
    n_rows : int
        How many rows have been written.
    """

    def __init__(
        self,
        commits: Commits,
        spec: RunSpec,
        group: str = "",
        metrics: Iterable[str] = (),
        n_rows: int = 0,
    ) -> None:
        self._commits, self._spec, self.group = commits, spec, group
        self.metrics = list(metrics)
        self.n_rows = n_rows

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """The arrays of the group, by their paths in the store."""
        n_metrics = len(self.metrics)
        return row_arrays(self._spec, n_metrics=n_metrics, group=self.group)

    def append(
        self,
        rows: Mapping[str, Array],
        scalars: Sequence[Mapping[str, float]],
        first: int | None = None,
    ) -> None:
        """Write rows.

        Parameters
        ----------
        rows : mapping from str to numpy.ndarray
            Every array of the group but the scalars, by its name in it, with the same
            number of rows.
        scalars : sequence of mapping from str to float
            The scalars of each row; a name that a row lacks reads as NaN.
        first : int, optional
            Number of the first row; default: the one behind the last. Rows that were
            written before are left as they are.
        """
        known = 0 if first is None else self.n_rows - first
        assert known >= 0
        scalars = scalars[known:]
        self.n_rows += len(scalars)
        self._register(name for row in scalars for name in row)
        table = np.full((len(scalars), self._n_columns), np.nan)
        for i, row in enumerate(scalars):
            for name, value in row.items():
                table[i, self.metrics.index(name)] = value
        new = {name: values[known:] for name, values in rows.items()}
        new["scalars"] = table
        self._commits.append({self._path(name): new[name] for name in new})

    def append_missing(self, places: npt.NDArray[np.int32]) -> None:
        """Write rows of which nothing is known but their places.

        Parameters
        ----------
        places : numpy.ndarray
            int32, (row, 3): epoch, iteration and window.
        """
        known = dict(zip(("epoch", "iteration", "window"), places.T, strict=True))
        rows = {
            name: np.full((len(places), *array.inner), array.missing, array.dtype)
            for name, array in row_arrays(self._spec, n_metrics=0).items()
            if name != "scalars"
        }
        self.append(rows | known, [{}] * len(places))

    def amend_last(self, scalars: Mapping[str, float]) -> None:
        """Set scalars of the last row."""
        self._register(scalars)
        columns = {self.metrics.index(name): v for name, v in scalars.items()}
        self._commits.amend_last(self._path("scalars"), columns)

    def last_scalar(self, name: str) -> float:
        """Return a scalar of the last row, 0 if it has none of that name."""
        if name not in self.metrics or self.n_rows == 0:
            return 0.0
        last = slice(self.n_rows - 1, self.n_rows)
        row = self._commits.read(self._path("scalars"), last)[0]
        return float(np.nan_to_num(row[self.metrics.index(name)]))

    def _register(self, names: Iterable[str]) -> None:
        before = self._n_columns
        self.metrics += dict.fromkeys(
            name for name in names if name not in self.metrics
        )
        if self._n_columns > before:
            self._commits.widen(self._path("scalars"), self._n_columns)

    @property
    def _n_columns(self) -> int:
        return n_metric_columns(len(self.metrics))

    def _path(self, name: str) -> str:
        return f"{self.group}/{name}" if self.group else name
