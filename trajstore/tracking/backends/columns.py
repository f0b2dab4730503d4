"""Columns of `tables` that a backend fills before and after a step."""

from collections.abc import Collection
from typing import NamedTuple

from trajstore.format.arrays import DERIVED_TABLE, UPDATE_TABLE, table_columns
from trajstore.format.run_spec import RunSpec


class Columns(NamedTuple):
    """Neighbouring columns of `tables`, filled together."""

    place: slice  # in the table
    starts: dict[
        str, int
    ]  # first column of each quantity, from the start of `place` on

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return int(self.place.stop - self.place.start)


class MeasuredColumns(NamedTuple):
    """The columns of `tables` that backends fill."""

    before: Columns  # the step
    after: Columns
    grad_sq: int  # column of |g|^2 in the table


def measured_columns(spec: RunSpec) -> MeasuredColumns:
    """Return the columns that backends fill, from `table_columns`."""
    columns = table_columns(spec)
    others = (*UPDATE_TABLE, *DERIVED_TABLE)
    return MeasuredColumns(
        before=_neighbours(columns, [name for name in columns if name not in others]),
        after=_neighbours(columns, UPDATE_TABLE),
        grad_sq=columns["grad_sq"].start,
    )


def _neighbours(columns: dict[str, slice], names: Collection[str]) -> Columns:
    first = min(columns[name].start for name in names)
    stop = max(columns[name].stop for name in names)
    starts = {name: columns[name].start - first for name in names}
    return Columns(slice(first, stop), starts)
