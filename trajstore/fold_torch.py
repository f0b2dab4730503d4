"""The torch twin of `trajstore.fold`, for the rows of a buffer.

It works a chunk of the vectors at a time, so that there is no temporary of their length,
and prepares all views of the buffer once: in a small net their making would take longer
than the arithmetic.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import torch
from torch import Tensor

from trajstore.fold import SHIFT, Fold
from trajstore.layout import BLOCK

CHUNK: Final = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Elements of a vector that are worked on at once: they should fit a CPU's cache, and
keep the number of kernels low on an accelerator."""


class Weighted(NamedTuple):
    """A fold of the first vector, weighted block by block.

    Attributes
    ----------
    block_weights : torch.Tensor
        float32, one for each block of the padded vector.
    row_signs : torch.Tensor
        float32, (row,).
    out : torch.Tensor
        float32, (bucket,): the fold is added to it.
    """

    block_weights: Tensor
    row_signs: Tensor
    out: Tensor


class _Chunk(NamedTuple):
    rows: slice
    blocks: slice
    vectors: Tensor
    signs: Tensor
    fresh_signs: Tensor
    signed: Tensor
    columns: list[Tensor]
    first_blocks: Tensor


class FoldOnDevice:
    """Folds the rows of one of some buffers.

    Parameters
    ----------
    fold : Fold
        What to compute.
    buffers : sequence of torch.Tensor
        float32, (vector, `padded_size`), zero beyond the size of the fold; of one shape.
        Their storage is kept: calls fold what it holds then.
    """

    def __init__(self, fold: Fold, buffers: Sequence[Tensor]) -> None:
        device, n_vectors = buffers[0].device, len(buffers[0])
        self._width = row_length(fold)
        self._fold = fold
        fixed = torch.from_numpy(fold.column_sequence).to(device)
        self._fresh = fixed.clone()
        signs, fresh = (
            sequence.as_strided((fold.n_rows, self._width), (SHIFT, 1))
            for sequence in (fixed, self._fresh)
        )
        n = max(1, CHUNK.get(device.type, CHUNK["cuda"]) // self._width)
        n = min(n, fold.n_rows)
        scratch_size = (n * self._width // BLOCK + 2) * BLOCK
        scratch = torch.zeros(n_vectors, scratch_size, device=device)
        self._chunks = [
            [
                _chunk(
                    slice(first, min(first + n, fold.n_rows)),
                    buffer,
                    signs,
                    fresh,
                    scratch,
                )
                for first in range(0, fold.n_rows, n)
            ]
            for buffer in buffers
        ]

    def start_window(self, window: int) -> None:
        """Take other column signs for the weighted fold; the others keep theirs."""
        sequence = replace(self._fold, window=window).column_sequence
        self._fresh.copy_(torch.from_numpy(sequence))

    def __call__(
        self,
        which: int,
        row_signs: Tensor,
        out: Tensor,
        weighted: Weighted | None = None,
    ) -> None:
        """Fold all vectors with the same row signs, and perhaps the first once more.

        Parameters
        ----------
        which : int
            Index of the buffer.
        row_signs : torch.Tensor
            float32, (row,).
        out : torch.Tensor
            float32, (vector, bucket): the folds are added to it.
        weighted : Weighted, optional
            The further fold.
        """
        sums = [buckets[: self._width] for buckets in out]
        for chunk in self._chunks[which]:
            torch.mul(chunk.vectors, chunk.signs, out=chunk.signed)
            for columns, buckets in zip(chunk.columns, sums, strict=True):
                buckets.addmv_(columns, row_signs[chunk.rows])
            if weighted is not None:
                torch.mul(chunk.vectors[0], chunk.fresh_signs, out=chunk.signed[0])
                chunk.first_blocks.mul_(weighted.block_weights[chunk.blocks, None])
                weighted.out[: self._width].addmv_(
                    chunk.columns[0], weighted.row_signs[chunk.rows]
                )


def row_length(fold: Fold) -> int:
    """Return the length of a row; shorter than the width if there is only one."""
    return fold.width if fold.n_rows > 1 else fold.size


def padded_size(fold: Fold) -> int:
    """Return the length of whole rows, rounded up to whole blocks."""
    return -(-fold.n_rows * row_length(fold) // BLOCK) * BLOCK


def _chunk(
    rows: slice, buffer: Tensor, signs: Tensor, fresh: Tensor, scratch: Tensor
) -> _Chunk:
    width = signs.shape[1]
    start, stop = rows.start * width, rows.stop * width
    blocks = slice(start // BLOCK, -(-stop // BLOCK))
    # The scratch begins where a block does, so that weights apply block by block.
    before = start - blocks.start * BLOCK
    signed = scratch[:, before : before + stop - start].unflatten(1, (-1, width))
    used = (blocks.stop - blocks.start) * BLOCK
    return _Chunk(
        rows=rows,
        blocks=blocks,
        vectors=buffer[:, start:stop].unflatten(1, (-1, width)),
        signs=signs[rows],
        fresh_signs=fresh[rows],
        signed=signed,
        columns=[matrix.T for matrix in signed],
        first_blocks=scratch[0, :used].view(-1, BLOCK),
    )
