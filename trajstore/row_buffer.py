"""Rows of measurements on their way from the training thread to the writer's."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from trajstore.rows import complete_tables, encode_probes, norms
from trajstore.schema import RunSpec

Scalar = float | Tensor


@dataclass(slots=True, kw_only=True)
class RowBuffer:
    """Some steps, as lists of small things and tensors of large ones.

    Attributes
    ----------
    measured : mapping from str to torch.Tensor
        As `trajstore.tracker.Tracker.allocate` returned it.
    places : list of tuple of int
        Epoch, iteration and window of every row.
    reference_sq : list of torch.Tensor
        |r|^2 by layer, of every row's window.
    scalars : list of dict
        Scalars of every row; tensors are converted by `arrays`.
    written : concurrent.futures.Future or None
        Set while the buffer belongs to the writer's thread.
    """

    measured: Mapping[str, Tensor]
    places: list[tuple[int, int, int]] = field(default_factory=list)
    reference_sq: list[Tensor] = field(default_factory=list)
    scalars: list[dict[str, Scalar]] = field(default_factory=list)
    written: Future[None] | None = None

    def __len__(self) -> int:
        return len(self.places)

    @property
    def is_full(self) -> bool:
        """Whether no further row fits."""
        return len(self) == len(self.measured["tables"])

    def row(self) -> dict[str, Tensor]:
        """Return views of the next free row."""
        return {name: tensor[len(self)] for name, tensor in self.measured.items()}

    def clear(self) -> None:
        """Make all rows free again."""
        self.places.clear()
        self.reference_sq.clear()
        self.scalars.clear()
        self.written = None

    def arrays(
        self, spec: RunSpec
    ) -> tuple[dict[str, npt.NDArray[Any]], list[dict[str, float]]]:
        """Convert to what `trajstore.writer.Writer.append_rows` takes."""
        rows = {k: to_numpy(tensor[: len(self)]) for k, tensor in self.measured.items()}
        places = np.array(self.places, np.int32)
        rows["epoch"], rows["iteration"], rows["window"] = places.T
        reference_sq = np.stack([to_numpy(values) for values in self.reference_sq])
        rows["tables"] = complete_tables(rows["tables"], reference_sq, spec)
        if not spec.exact:
            rows |= encode_probes(rows.pop("probes"))
        lengths = norms(rows["tables"], spec)
        scalars = [
            {name: float(value) for name, value in row.items()}
            | {name: float(values[i]) for name, values in lengths.items()}
            for i, row in enumerate(self.scalars)
        ]
        return rows, scalars


def to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """Return the values of a tensor on any device; waits for them."""
    array: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    return array
