"""Keep the checks of a growing array up to date."""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import ArraySpec
from trajstore.format.checks import CheckList, Load, StoredChecks, check_of, n_columns

Array = npt.NDArray[Any]


class RowChecks:
    """Checks of the chunks of one array, which its writer keeps while it appends rows."""

    # The check of an incomplete chunk covers its rows so far, and is extended by new rows.
    # Chunks therefore match older root documents even after a commit that was not finished.
    def __init__(
        self,
        path: str,
        spec: ArraySpec,
        load: Load,
        stored: StoredChecks | None = None,
    ) -> None:
        self.path, self._spec, self._load = path, spec, load
        self.n_rows = stored.array.length if stored else 0
        self.list = CheckList(
            path,
            load,
            n_last=n_columns(spec),
            levels=stored.open if stored else (),
        )
        # Checks in the last root document, and alternatives once its last row was amended.
        self._n_columns = n_columns(spec)
        self._committed = self.n_rows
        self._n_committed_columns = self._n_columns
        self.pending: list[int] = []

    def append(self, rows: Array) -> None:
        """Extend the checks by new rows."""
        # Zarr converts values to the type of the array as well.
        n_chunk, rows = self._spec.chunk[0], np.asarray(rows, self._spec.dtype)
        while len(rows):
            free = n_chunk - self.n_rows % n_chunk
            new, rows = rows[:free], rows[free:]
            blocks = column_blocks(new, self._spec)
            if free == n_chunk:
                self.list.extend([check_of(block) for block in blocks])
            else:
                known = zip(blocks, self.list.last(), strict=True)
                self.list.replace_last([check_of(*pair) for pair in known])
            self.n_rows += len(new)

    def amend(self, tail: Array) -> None:
        """Replace the checks of the last chunks, whose last row has changed."""
        checks = [check_of(block) for block in column_blocks(tail, self._spec)]
        self.list.replace_last(checks)
        if self.n_rows == self._committed:
            self.pending = checks[: self._n_committed_columns]

    def replace(self, checks: list[int], length: int) -> None:
        """Replace all checks of an array that is written whole."""
        self.list.truncate(0)
        self.list.extend(checks)
        self.n_rows = length

    def rewind(self, n_rows: int, tail: Array) -> None:
        """Keep the checks of the first `n_rows`; `tail` holds those in an incomplete chunk."""
        n_chunk = self._spec.chunk[0]
        self.n_rows = n_rows - len(tail)
        self.list.truncate(-(-self.n_rows // n_chunk) * self._n_columns)
        self.append(tail)

    def widen(self, spec: ArraySpec) -> None:
        """Add the checks of new columns, which hold NaN."""
        n_chunk, n_before = self._spec.chunk[0], self._n_columns
        assert self._spec.inner[0] % self._spec.chunk[1] == 0
        checks = [self.list[i] for i in range(len(self.list))]
        self._spec, self._n_columns = spec, n_columns(spec)
        self.list = CheckList(self.path, self._load, n_last=self._n_columns)
        whole: list[int] = []
        for i in range(0, len(checks), n_before):
            n_rows = min(n_chunk, self.n_rows - i // n_before * n_chunk)
            if not whole or n_rows < n_chunk:
                missing = np.full((n_rows, *spec.inner), np.nan, spec.dtype)
                whole = [check_of(block) for block in column_blocks(missing, spec)]
            self.list.extend([*checks[i : i + n_before], *whole[n_before:]])

    def committed(self) -> None:
        """Note that a root document holds the checks."""
        self.list.written()
        self._committed, self.pending = self.n_rows, []
        self._n_committed_columns = self._n_columns


def column_blocks(rows: Array, spec: ArraySpec) -> Iterator[Array]:
    """Yield the parts of rows that lie in different chunks."""
    # Only the second dimension is divided into chunks.
    if n_columns(spec) == 1:
        yield rows
    elif prod(spec.inner):
        for start in range(0, spec.inner[0], spec.chunk[1]):
            yield rows[:, start : start + spec.chunk[1]]
