"""Rows that backends fill, with views of them as NumPy arrays."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from torch import Tensor

Arrays = Mapping[str, npt.NDArray[Any]]


class Row(dict[str, Tensor]):
    """Tensors of a row by name."""

    arrays: Arrays | None = None
    """The same tensors as arrays; None if they are not in the memory of the CPU."""
    address = 0
    """Address of the array `tables`, row-major; 0 if there are no arrays."""


def rows_of(measured: Mapping[str, Tensor]) -> list[Row]:
    """View every row of tensors (row, ...)."""
    # Making a view takes a microsecond per tensor, which is too long for each step.
    by_row = zip(*(t.unbind() for t in measured.values()), strict=True)
    rows = [Row(zip(measured, tensors, strict=True)) for tensors in by_row]
    if all(t.is_cpu for t in measured.values()):
        arrays = [t.numpy() for t in measured.values()]
        for i, row in enumerate(rows):
            row.arrays = {n: a[i, ...] for n, a in zip(measured, arrays, strict=True)}
            row.address = row.arrays["tables"].ctypes.data
    return rows


def arrays_of(row: Mapping[str, Tensor]) -> Arrays:
    """View a row in the memory of the CPU as arrays."""
    if isinstance(row, Row) and row.arrays is not None:
        return row.arrays
    return {name: tensor.numpy() for name, tensor in row.items()}
