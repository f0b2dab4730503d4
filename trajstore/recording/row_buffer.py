"""Hold rows on their way from the training thread to the writer thread."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajstore.format.arrays import SAMPLES, table_columns
from trajstore.format.rows import complete_rows
from trajstore.format.run_spec import RunSpec
from trajstore.recording.host_copies import Arrays, to_numpy
from trajstore.recording.logged import Scalar
from trajstore.tracking.backends.rows import Row, rows_of

LOSS: Final = "loss"
"""Name under which training loops log the loss."""

Fetch = Callable[[Sequence[Tensor]], Arrays]

Rows = tuple[dict[str, npt.NDArray[Any]], list[dict[str, float]]]
"""Arguments of `trajstore.store.row_table.RowTable.append`: arrays, and scalars by row."""


class Entry(NamedTuple):
    """The part of a row that the tracker does not measure."""

    place: tuple[int, int, int]
    """Numbers of the epoch, of the iteration in it, and of the window."""
    anchor_sq: Tensor
    """Squared norm of the window's anchor by layer, float64."""
    scalars: dict[str, Scalar]
    samples: npt.NDArray[np.int64] | None = None
    """Indices of examples, int64 (samples,); present in all entries of a buffer or in none."""


@dataclass(slots=True, kw_only=True)
class RowBuffer:
    """Rows of consecutive steps: one tensor per quantity, and one entry per row."""

    measured: Mapping[str, Tensor]
    """Tensors (row, ...) by quantity, made by `trajstore.tracking.tracker.Tracker.allocate`."""
    first: int = 0
    """Optimizer step of the first row."""
    entries: list[Entry] = field(default_factory=list)
    """One entry per filled row. Entries may hold tensors, which `arrays` converts."""
    written: Future[None] | None = None
    """The job that writes the buffer; set while the writer thread uses the buffer."""
    rows: list[Row] = field(init=False, repr=False)
    """Views of every row, filled or free."""

    def __post_init__(self) -> None:
        self.rows = rows_of(self.measured)

    def __len__(self) -> int:
        return len(self.entries)

    def clear(self, first: int) -> None:
        """Free all rows, for the steps from `first` on."""
        self.first = first
        self.entries.clear()
        self.written = None

    def arrays(
        self, spec: RunSpec, fetch: Fetch = to_numpy, n_rows: int | None = None
    ) -> Rows:
        """Return the first rows, or all filled rows, for the writer."""
        # `fetch` copies many tensors in one batch.
        entries = self.entries[:n_rows]
        filled = {name: rows[: len(entries)] for name, rows in self.measured.items()}
        return to_arrays(filled, entries, spec, fetch)

    def norms_and_losses(
        self, spec: RunSpec, fetch: Fetch, rows: slice
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
        """Return |g|^2 and |u|^2 (row, layer, 2), and losses (row,) of rows that have one."""
        columns = table_columns(spec)
        squares = [columns[name].start for name in ("grad_sq", "update_sq")]
        scalars = [entry.scalars for entry in self.entries[rows]]
        losses = _Scalars([{LOSS: row[LOSS]} for row in scalars if LOSS in row])
        tables = self.measured["tables"][rows]
        # An index of several columns would wait for the device.
        chosen = torch.stack([tables[..., column] for column in squares], -1)
        fetched, *stacks = fetch([chosen, *losses.stacks])
        filled = losses.filled(stacks)
        return fetched, np.array([row[LOSS] for row in filled], np.float64)


def to_arrays(
    measured: Mapping[str, Tensor],
    entries: Sequence[Entry],
    spec: RunSpec,
    fetch: Fetch = to_numpy,
    *,
    are_updates: bool = False,  # as for `trajstore.format.rows.complete_rows`
) -> Rows:
    """Convert rows for the writer, given tensors (row, ...) and an entry for every row."""
    # Rows of one window share the tensor `anchor_sq`.
    anchor_norms = list({id(e.anchor_sq): e.anchor_sq for e in entries}.values())
    scalars = _Scalars([entry.scalars for entry in entries])
    arrays = iter(fetch([*measured.values(), *anchor_norms, *scalars.stacks]))
    rows = {name: next(arrays) for name in measured}
    anchor_sq = {id(tensor): next(arrays) for tensor in anchor_norms}
    samples = [entry.samples for entry in entries if entry.samples is not None]
    if samples:
        rows[SAMPLES] = np.stack(samples)
    return complete_rows(
        rows,
        [entry.place for entry in entries],
        np.stack([anchor_sq[id(entry.anchor_sq)] for entry in entries]),
        scalars.filled([next(arrays) for _ in scalars.stacks]),
        spec,
        are_updates=are_updates,
    )


class _Scalars:
    """Scalars of rows, with their tensors stacked to be copied in one batch."""

    def __init__(self, rows: Sequence[Mapping[str, Scalar]]) -> None:
        self._rows = rows
        groups = defaultdict(list)
        for i, row in enumerate(rows):
            for name, value in row.items():
                if isinstance(value, Tensor):
                    groups[value.device, value.dtype].append((i, name, value))
        self._groups = list(groups.values())
        self.stacks = [
            torch.stack([value.reshape(()) for _, _, value in group]).double()
            for group in self._groups
        ]

    def filled(self, values: Sequence[npt.NDArray[Any]]) -> list[dict[str, float]]:
        """Return the rows as floats, given the values of the stacks."""
        floats: list[dict[str, Any]] = [dict(row) for row in self._rows]
        for group, group_values in zip(self._groups, values, strict=True):
            for (i, name, _), value in zip(group, group_values.tolist(), strict=True):
                floats[i][name] = value
        return floats
