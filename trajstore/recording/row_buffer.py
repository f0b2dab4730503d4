"""Rows of measurements on their way from the training thread to the writer's."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajstore.format.arrays import SAMPLES
from trajstore.format.rows import complete_rows
from trajstore.format.run_spec import RunSpec
from trajstore.recording.host_copies import Arrays, to_numpy
from trajstore.recording.scalars import Scalar

Fetch = Callable[[Sequence[Tensor]], Arrays]


class Entry(NamedTuple):
    """What is kept of a row besides its tensors.

    Attributes
    ----------
    place : tuple of int
        Epoch, iteration and window.
    reference_sq : torch.Tensor
        |r|^2 of its window by layer, float64.
    scalars : dict from str to float or torch.Tensor
        What was logged with it.
    samples : numpy.ndarray or None
        Indices of the examples in the batch, as a row of the store: of all entries of a
        buffer, or of none.
    """

    place: tuple[int, int, int]
    reference_sq: Tensor
    scalars: dict[str, Scalar]
    samples: npt.NDArray[np.int64] | None = None


@dataclass(slots=True, kw_only=True)
class RowBuffer:
    """Some steps, as a list of small things and tensors of large ones.

    Attributes
    ----------
    measured : mapping from str to torch.Tensor
        As `trajstore.tracking.tracker.Tracker.allocate` returned it.
    first : int
        Optimizer step of the first row.
    entries : list of Entry
        One for every row; tensors in it are converted by `arrays`.
    written : concurrent.futures.Future or None
        Set while the buffer belongs to the writer's thread.
    """

    measured: Mapping[str, Tensor]
    first: int = 0
    entries: list[Entry] = field(default_factory=list)
    written: Future[None] | None = None
    _rows: list[dict[str, Tensor]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # To cut out a row takes a microsecond for every tensor, too long for each step.
        rows = zip(*(tensor.unbind() for tensor in self.measured.values()), strict=True)
        self._rows = [dict(zip(self.measured, row, strict=True)) for row in rows]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def is_full(self) -> bool:
        """Whether no further row fits."""
        return len(self.entries) == len(self._rows)

    def row(self) -> dict[str, Tensor]:
        """Return views of the next free row."""
        return self._rows[len(self.entries)]

    def clear(self, first: int) -> None:
        """Make all rows free again, for the steps from `first` on."""
        self.first = first
        self.entries.clear()
        self.written = None

    def arrays(
        self, spec: RunSpec, fetch: Fetch = to_numpy
    ) -> tuple[dict[str, npt.NDArray[Any]], list[dict[str, float]]]:
        """Convert to what `trajstore.store.row_table.RowTable.append` takes.

        Parameters
        ----------
        spec : RunSpec
            What is recorded.
        fetch : callable
            Returns the values of tensors, of all at once.

        Returns
        -------
        rows : dict from str to numpy.ndarray
            By name of the array in the store.
        scalars : list of dict
            Of each row.
        """
        entries = self.entries.copy()
        filled = {name: rows[: len(entries)] for name, rows in self.measured.items()}
        return to_arrays(filled, entries, spec, fetch)


def to_arrays(
    measured: Mapping[str, Tensor],
    entries: Sequence[Entry],
    spec: RunSpec,
    fetch: Fetch = to_numpy,
) -> tuple[dict[str, npt.NDArray[Any]], list[dict[str, float]]]:
    """Convert rows to what `trajstore.store.row_table.RowTable.append` takes.

    Parameters
    ----------
    measured : mapping from str to torch.Tensor
        As `trajstore.tracking.tracker.Tracker.allocate` describes it.
    entries : sequence of Entry
        One for every row.
    spec : RunSpec
        What is recorded.
    fetch : callable
        Returns the values of tensors, of all at once.

    Returns
    -------
    rows : dict from str to numpy.ndarray
        By name of the array in the store.
    scalars : list of dict
        What was logged with every row, and norms.
    """
    # Rows of one window share a tensor.
    windows = list({id(e.reference_sq): e.reference_sq for e in entries}.values())
    scalars = _Scalars([entry.scalars for entry in entries])
    arrays = iter(fetch([*measured.values(), *windows, *scalars.stacks]))
    rows = {name: next(arrays) for name in measured}
    reference_sq = {id(tensor): next(arrays) for tensor in windows}
    samples = [entry.samples for entry in entries if entry.samples is not None]
    if samples:
        rows[SAMPLES] = np.stack(samples)
    return complete_rows(
        rows,
        [entry.place for entry in entries],
        np.stack([reference_sq[id(entry.reference_sq)] for entry in entries]),
        scalars.filled([next(arrays) for _ in scalars.stacks]),
        spec,
    )


class _Scalars:
    """What was logged with some rows; tensors are brought together, to be copied at once.

    Attributes
    ----------
    stacks : list of torch.Tensor
        float64, 1-d.
    """

    def __init__(self, rows: Sequence[Mapping[str, Scalar]]) -> None:
        self._rows = rows
        places = defaultdict(list)
        for i, row in enumerate(rows):
            for name, value in row.items():
                if isinstance(value, Tensor):
                    places[value.device, value.dtype].append((i, name, value))
        self._places = list(places.values())
        self.stacks = [
            torch.stack([value.reshape(()) for _, _, value in group]).double()
            for group in self._places
        ]

    def filled(self, values: Sequence[npt.NDArray[Any]]) -> list[dict[str, float]]:
        """Return the rows with the values of the stacks."""
        floats: list[dict[str, Any]] = [dict(row) for row in self._rows]
        for group, of_group in zip(self._places, values, strict=True):
            for (i, name, _), value in zip(group, of_group.tolist(), strict=True):
                floats[i][name] = value
        return floats
