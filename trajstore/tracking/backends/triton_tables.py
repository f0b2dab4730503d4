"""Make the tables of addresses, segments and sums for the kernels of `triton_kernels`."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajstore.format.layout import BLOCK, Layout
from trajstore.sketch_torch.uploads import upload
from trajstore.tracking.backends import triton_kernels
from trajstore.tracking.backends.columns import Columns
from trajstore.tracking.backends.memory import row_major
from trajstore.tracking.backends.triton_kernels import ABSENT, KINDS

SEGMENT: Final = 256
"""Number of elements that a program processes in one batch: eight per thread of a warp."""

ROWS_PER_PROGRAM: Final = 256
"""Maximum number of rows of a table that one program adds up."""

LANES: Final = 256
"""Number of groups of neighbours that one program adds up."""

ONE_WARP: Final = {"num_warps": 1, "enable_fp_fusion": True}
FOUR_WARPS: Final = {"num_warps": 4, "enable_fp_fusion": True}


class AddressTable:
    """Keeps a table of the addresses of tensors on the device, in the order of a layout."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self._shapes = dict(zip(layout.names, layout.shapes, strict=True))
        self._offsets, self._device = layout.offsets, device
        self._uploaded = np.zeros((2, len(layout.names)), np.int64)
        # int64 (2, layer). The first row holds each tensor's address minus its offset in the flat
        # vector, in bytes; a kernel adds the offset of an element in the flat vector. The
        # second row holds the kinds of the elements.
        self.table = upload(self._uploaded.copy(), device)
        # Keeps the tensors, or copies of them, alive while kernels may read them.
        self._kept: list[Tensor | None] = []

    def update(self, tensors: Sequence[Tensor | None]) -> int:
        """Enter these tensors in the table; return a bit mask of their kinds."""
        tensors = self._kept = [
            None if t is None else row_major(t, name, shape, self._as_row_major)
            for t, (name, shape) in zip(tensors, self._shapes.items(), strict=True)
        ]
        entries = np.array(
            [
                (0, ABSENT) if t is None else (t.data_ptr(), KINDS[t.dtype])
                for t in tensors
            ],
            np.int64,
        ).T
        kinds = entries[1]
        # Subtract the offset in bytes. Kind 0 is float32; the other kinds have two bytes.
        entries[0] -= self._offsets * np.where(kinds == 0, 4, 2)
        if not np.array_equal(entries, self._uploaded):
            self._uploaded = entries
            self.table.copy_(upload(np.ascontiguousarray(entries), self._device))
        return sum(1 << kind for kind in KINDS.values() if kind in kinds)

    def _as_row_major(self, tensor: Tensor) -> Tensor:
        if (
            tensor.layout is torch.strided
            and tensor.dtype in KINDS
            and tensor.is_contiguous()
            and tensor.device == self._device
            and not tensor.is_neg()
        ):
            return tensor
        if tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        return (
            tensor.detach().to(self._device, torch.float32).resolve_neg().contiguous()
        )


class SumsByBlock:
    """Adds up the parts of blocks, which are parts of neighbouring segments."""

    def __init__(
        self, layout: Layout, width: int, n_tiles: int, device: torch.device
    ) -> None:
        row_starts = width * np.arange(-(-layout.size // width))[:, None]
        starts = row_starts + SEGMENT * np.arange(n_tiles)
        ends = np.minimum(starts + SEGMENT, row_starts + width) - 1
        # A segment has a part in the block of its first element, and one in the block of its
        # last element; if these blocks are the same, the second part is 0.
        blocks = np.stack([starts, ends], -1) // BLOCK
        n_blocks = layout.size // BLOCK
        bounds = np.searchsorted(blocks.reshape(-1), np.arange(n_blocks + 1))
        self._bounds = upload(bounds.astype(np.int32), device)
        self._most = int(np.diff(bounds).max())
        # float32 (segment, 2): the parts, which kernels fill.
        self.parts = torch.zeros((starts.size, 2), device=device, dtype=torch.float32)
        self.totals = torch.zeros(n_blocks, device=device, dtype=torch.float32)

    def add_up(self) -> None:
        """Add the sums of the parts to `totals`, float32 (block,)."""
        n_blocks = len(self.totals)
        triton_kernels.add_neighbours[(-(-n_blocks // LANES),)](
            self.parts,
            self._bounds,
            self.totals,
            n_blocks,
            self._most,
            LANES=LANES,
            **FOUR_WARPS,
        )


class SumsByLayer:
    """Adds the rows of a table layer by layer, in float64 and in a fixed order."""

    def __init__(
        self,
        layer_of_row: npt.NDArray[Any],  # (row,): layer of each row, ascending
        n_layers: int,
        n_columns: int,
        device: torch.device,
    ) -> None:
        # float32 (row, column): the table, which kernels fill.
        self.values = torch.zeros(
            (len(layer_of_row), n_columns), device=device, dtype=torch.float32
        )
        bounds = np.searchsorted(layer_of_row, np.arange(n_layers + 1))
        groups = [
            np.arange(first, stop, ROWS_PER_PROGRAM) for first, stop in pairwise(bounds)
        ]
        group_bounds = np.append(np.concatenate(groups), len(layer_of_row))
        layer_bounds = np.cumsum([0, *map(len, groups)])
        self._group_bounds = upload(group_bounds.astype(np.int32), device)
        self._layer_bounds = upload(layer_bounds.astype(np.int32), device)
        self._group_sums = torch.zeros(
            (len(group_bounds) - 1, n_columns), dtype=torch.float64, device=device
        )

    def write(self, out: Tensor) -> None:
        """Write the sums to the first columns of `out`, float32 (layer, at least n_columns)."""
        self._add_up(self.values, self._group_bounds, self._group_sums)
        self._add_up(self._group_sums, self._layer_bounds, out)

    def _add_up(self, values: Tensor, bounds: Tensor, out: Tensor) -> None:
        n_columns = self.values.shape[1]
        triton_kernels.add_up[(len(bounds) - 1,)](
            values,
            bounds,
            out,
            out.stride(0),
            N_COLUMNS=n_columns,
            COLUMNS=1 << (n_columns - 1).bit_length(),
            ROWS=32,
            **FOUR_WARPS,
        )


def column_constants(columns: Columns) -> dict[str, int]:
    """Return the column numbers that kernels need as constants: N_COLUMNS, GRAD_SQ, ..."""
    constants = {name.upper(): start for name, start in columns.starts.items()}
    return constants | {"N_COLUMNS": columns.n_columns}


def segments_of(
    layout: Layout, width: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return a table of the segments of a fold, (segment, 4), and the layer of each sum."""
    # `triton_kernels.measure_before` explains the four columns. A segment has one sum, or two
    # if it contains a border between tensors. The layers are ascending.
    last_element = layout.size - 1
    row_starts = width * np.arange(-(-layout.size // width))[:, None]
    starts = (row_starts + np.arange(0, width, SEGMENT)).reshape(-1)
    row_stops = np.repeat(row_starts + width, -(-width // SEGMENT))
    ends = np.minimum(np.minimum(starts + SEGMENT, row_stops) - 1, last_element)
    first, last = (
        layout.layer_of_block[np.minimum(elements, last_element) // BLOCK]
        for elements in (starts, ends)
    )
    is_split = first != last
    first_sum = np.arange(len(starts)) + np.cumsum(is_split) - is_split
    layer_of_sum = np.empty(len(starts) + np.count_nonzero(is_split), np.int64)
    layer_of_sum[first_sum] = first
    layer_of_sum[first_sum[is_split] + 1] = last[is_split]
    # The border of a segment with only one tensor lies after the last element of the vector.
    borders = np.where(is_split, layout.offsets[last] // BLOCK, layout.size // BLOCK)
    table = np.stack([first, last, first_sum, borders], 1)
    return table.astype(np.int32), layer_of_sum
