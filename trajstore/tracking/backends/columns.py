"""Find the columns of `tables` that a backend fills before and after a step."""

from collections.abc import Collection
from typing import NamedTuple

from trajstore.format.arrays import DERIVED_TABLE, UPDATE_TABLE, table_columns
from trajstore.format.run_spec import RunSpec


class Columns(NamedTuple):
    """Neighbouring columns of `tables` that are filled together."""

    table_slice: slice  # range of the columns in a table
    # First column of each quantity, relative to the start of `table_slice`.
    starts: dict[str, int]

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return int(self.table_slice.stop - self.table_slice.start)


class MeasuredColumns(NamedTuple):
    """The columns of `tables` that backends fill."""

    before: Columns  # columns that are filled before the step
    after: Columns  # columns that are filled after the step
    grad_sq: int  # column of |g|^2 in a table


def measured_columns(spec: RunSpec) -> MeasuredColumns:
    """Select the columns of `table_columns` that backends fill."""
    columns = table_columns(spec)
    other_names = (*UPDATE_TABLE, *DERIVED_TABLE)
    return MeasuredColumns(
        before=_neighbours(
            columns, [name for name in columns if name not in other_names]
        ),
        after=_neighbours(columns, UPDATE_TABLE),
        grad_sq=columns["grad_sq"].start,
    )


def _neighbours(columns: dict[str, slice], names: Collection[str]) -> Columns:
    first = min(columns[name].start for name in names)
    stop = max(columns[name].stop for name in names)
    starts = {name: columns[name].start - first for name in names}
    return Columns(slice(first, stop), starts)
