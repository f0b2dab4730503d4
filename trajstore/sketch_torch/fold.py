"""Fold the vectors in a buffer in torch, as `trajstore.sketch.fold` does in NumPy.

The vectors are folded in chunks, so that no temporary tensor is as long as the vectors. All views
of the buffer are prepared once: for a small net, creating them in every step would take longer
than the arithmetic.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import torch
from torch import Tensor

from trajstore.format.layout import BLOCK
from trajstore.sketch.fold import SHIFT, Fold
from trajstore.sketch_torch.uploads import upload

CHUNK: Final = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Number of elements to fold in one batch, by type of device: few enough for the cache of a
CPU, and enough to keep the number of kernels on an accelerator low."""


class Span(NamedTuple):
    """Neighbouring blocks of the flat vector, all held by one rank."""

    start: int  # index of the first element in the flat vector
    local: int  # index of the first element in the part that the rank holds
    length: int  # number of elements


class Weighted(NamedTuple):
    """Inputs and output of a fold of the first vector, weighted block by block."""

    block_weights: Tensor  # float32 (block,): weights of the blocks of a buffer
    row_signs: Tensor  # float32 (row,)
    out: Tensor  # float32 (bucket,): the fold is added to it


class _Chunk(NamedTuple):
    """Views of neighbouring elements that fill whole rows of the fold, or part of a row."""

    rows: slice  # rows of the fold
    buckets: slice  # buckets of the fold
    blocks: slice  # blocks of the buffer
    vectors: Tensor  # elements of the vectors, (vector, row, bucket)
    signs: Tensor  # column signs that stay the same for the run, (row, bucket)
    window_signs: Tensor  # column signs of the current window, (row, bucket)
    signed: Tensor  # scratch memory for vectors times signs, (vector, row, bucket)
    columns: list[Tensor]  # views of the scratch memory of each vector, (bucket, row)
    first_blocks: Tensor  # scratch memory of the first vector, (block, element)


class FoldOnDevice:
    """Folds the vectors in one of several buffers."""

    def __init__(
        self,
        fold: Fold,
        buffers: Sequence[Tensor],  # each float32 (vector, size); not copied
        spans: Sequence[Span],  # places of the elements in the buffers
    ) -> None:
        device, n_vectors = buffers[0].device, len(buffers[0])
        # Row signs of the folds of the window's sum, (row, fold), and these folds.
        self._dealt_signs = torch.zeros(
            (fold.n_rows, 0), device=device, dtype=torch.float32
        )
        self._window_folds = torch.zeros(
            (0, fold.buckets), device=device, dtype=torch.float32
        )
        self._fold = fold
        run_sequence = torch.from_numpy(fold.column_sequence).to(device)
        self._window_sequence = run_sequence.clone()
        chunk_length = CHUNK.get(device.type, CHUNK["cuda"])
        chunk_bounds = [
            bounds for span in spans for bounds in _cut(span, fold, chunk_length)
        ]
        longest = max((bounds.length for bounds in chunk_bounds), default=0)
        scratch = torch.zeros(
            n_vectors, longest + 2 * BLOCK, device=device, dtype=torch.float32
        )
        self._chunks = [
            [
                _chunk(bounds, buffer, run_sequence, self._window_sequence, scratch)
                for bounds in chunk_bounds
            ]
            for buffer in buffers
        ]

    def start_window(self, window: int) -> None:
        """Use the column signs of this window for weighted folds from now on."""
        sequence = replace(self._fold, window=window).column_sequence
        self._window_sequence.copy_(upload(sequence, self._window_sequence.device))

    def start_sum(
        self,
        row_signs: Tensor,  # float32 (row,)
        folds: Tensor,  # float32 (fold, bucket): every weighted fold is added, row by row in turn
    ) -> None:
        """Add up weighted vectors in several folds; see `trajstore.sketch.window_sum`."""
        n_rows, n_folds = len(row_signs), len(folds)
        dealt = row_signs.new_zeros(n_rows, n_folds)
        if n_folds:
            rows = torch.arange(n_rows, device=row_signs.device)
            dealt[rows, rows % n_folds] = row_signs
        self._dealt_signs, self._window_folds = dealt, folds

    def __call__(
        self,
        buffer_index: int,  # which buffer to fold
        row_signs: Tensor,  # float32 (row,)
        out: Tensor,  # float32 (vector, bucket): the folds are added to it
        weighted: Weighted | None = None,
    ) -> None:
        """Fold all vectors; also compute the weighted fold of the first vector if requested."""
        for chunk in self._chunks[buffer_index]:
            torch.mul(chunk.vectors, chunk.signs, out=chunk.signed)
            for columns, buckets in zip(chunk.columns, out, strict=True):
                buckets[chunk.buckets].addmv_(columns, row_signs[chunk.rows])
            if weighted is not None:
                torch.mul(chunk.vectors[0], chunk.window_signs, out=chunk.signed[0])
                chunk.first_blocks.mul_(weighted.block_weights[chunk.blocks, None])
                weighted.out[chunk.buckets].addmv_(
                    chunk.columns[0], weighted.row_signs[chunk.rows]
                )
                if len(self._window_folds):
                    self._window_folds[:, chunk.buckets].addmm_(
                        self._dealt_signs[chunk.rows].T, chunk.signed[0]
                    )


class _Bounds(NamedTuple):
    """Bounds of a chunk in the fold and in a buffer."""

    row: int  # first row of the fold
    n_rows: int
    bucket: int  # first bucket of the fold
    width: int  # number of buckets
    local: int  # index of the first element in the buffer

    @property
    def length(self) -> int:
        return self.n_rows * self.width


def _cut(span: Span, fold: Fold, chunk_length: int) -> Iterator[_Bounds]:
    """Cut a span into a partial row, groups of whole rows, and a partial row."""
    start, stop = span.start, min(span.start + span.length, fold.size)
    while start < stop:
        row, bucket = divmod(start, fold.width)
        width = min(fold.width - bucket, stop - start)
        n_rows = 1
        if width == fold.width:
            n_rows = max(1, min((stop - start) // width, chunk_length // width))
        yield _Bounds(row, n_rows, bucket, width, span.local + start - span.start)
        start += n_rows * width


def _chunk(
    bounds: _Bounds,
    buffer: Tensor,
    run_sequence: Tensor,
    window_sequence: Tensor,
    scratch: Tensor,
) -> _Chunk:
    start, stop = bounds.local, bounds.local + bounds.length
    blocks = slice(start // BLOCK, -(-stop // BLOCK))
    # The scratch memory begins at the start of a block, so that weights apply block by block.
    before = start - blocks.start * BLOCK
    signed = scratch[:, before : before + bounds.length].unflatten(
        1, (-1, bounds.width)
    )
    used = (blocks.stop - blocks.start) * BLOCK
    signs, window_signs = (
        sequence.as_strided(
            (bounds.n_rows, bounds.width),
            (SHIFT, 1),
            SHIFT * bounds.row + bounds.bucket,
        )
        for sequence in (run_sequence, window_sequence)
    )
    return _Chunk(
        rows=slice(bounds.row, bounds.row + bounds.n_rows),
        buckets=slice(bounds.bucket, bounds.bucket + bounds.width),
        blocks=blocks,
        vectors=buffer[:, start:stop].unflatten(1, (-1, bounds.width)),
        signs=signs,
        window_signs=window_signs,
        signed=signed,
        columns=[matrix.T for matrix in signed],
        first_blocks=scratch[0, :used].view(-1, BLOCK),
    )
