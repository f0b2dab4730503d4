"""Folds of the rows of a buffer in torch, as in `trajstore.sketch.fold`.

It works on a chunk of the vectors at a time, so that there is no temporary of their length,
and prepares all views of the buffer once: in a small net making them would take longer than
the arithmetic.
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
"""Elements to fold at once: few enough for a CPU's cache, many enough to keep the
number of kernels low on an accelerator."""


class Span(NamedTuple):
    """Neighbouring blocks of the flat vector that one rank keeps."""

    start: int  # first element in the flat vector
    local: int  # first element in the rank's part
    length: int  # number of elements


class Weighted(NamedTuple):
    """A fold of the first vector, weighted block by block."""

    block_weights: Tensor  # float32, one for each block of a buffer
    row_signs: Tensor  # float32 (row,)
    out: Tensor  # float32 (bucket,): the fold is added to it


class _Chunk(NamedTuple):
    """Neighbouring elements that fill rows of the fold, or a part of one."""

    rows: slice  # of the fold
    buckets: slice  # of the fold
    blocks: slice  # of the buffer
    vectors: Tensor  # the elements, (vector, row, bucket)
    signs: Tensor  # column signs that stay, (row, bucket)
    fresh_signs: Tensor  # column signs of the window
    signed: Tensor  # scratch for the product of vectors and signs
    columns: list[Tensor]  # the scratch as (bucket, row), for each vector
    first_blocks: Tensor  # the scratch of the first vector as (block, element)


class FoldOnDevice:
    """Folds the rows of one of several buffers."""

    def __init__(
        self,
        fold: Fold,
        buffers: Sequence[Tensor],  # float32 (vector, size), of one shape; not copied
        spans: Sequence[Span],  # elements of the vectors in the buffers
    ) -> None:
        device, n_vectors = buffers[0].device, len(buffers[0])
        self._fold = fold
        fixed = torch.from_numpy(fold.column_sequence).to(device)
        self._fresh = fixed.clone()
        at_once = CHUNK.get(device.type, CHUNK["cuda"])
        places = [place for span in spans for place in _places(span, fold, at_once)]
        longest = max((place.length for place in places), default=0)
        scratch = torch.zeros(n_vectors, longest + 2 * BLOCK, device=device)
        self._chunks = [
            [_chunk(place, buffer, fixed, self._fresh, scratch) for place in places]
            for buffer in buffers
        ]

    def start_window(self, window: int) -> None:
        """Use the column signs of a window for the weighted fold; other folds keep theirs."""
        sequence = replace(self._fold, window=window).column_sequence
        self._fresh.copy_(upload(sequence, self._fresh.device))

    def __call__(
        self,
        which: int,  # index of the buffer
        row_signs: Tensor,  # float32 (row,)
        out: Tensor,  # float32 (vector, bucket): folds are added to it
        weighted: Weighted | None = None,
    ) -> None:
        """Fold all vectors with the same row signs, and the first once more if asked."""
        for chunk in self._chunks[which]:
            torch.mul(chunk.vectors, chunk.signs, out=chunk.signed)
            for columns, buckets in zip(chunk.columns, out, strict=True):
                buckets[chunk.buckets].addmv_(columns, row_signs[chunk.rows])
            if weighted is not None:
                torch.mul(chunk.vectors[0], chunk.fresh_signs, out=chunk.signed[0])
                chunk.first_blocks.mul_(weighted.block_weights[chunk.blocks, None])
                weighted.out[chunk.buckets].addmv_(
                    chunk.columns[0], weighted.row_signs[chunk.rows]
                )


class _Place(NamedTuple):
    """Place of a chunk in the fold, and in a buffer from `local` on."""

    row: int
    n_rows: int
    bucket: int
    width: int
    local: int

    @property
    def length(self) -> int:
        return self.n_rows * self.width


def _places(span: Span, fold: Fold, at_once: int) -> Iterator[_Place]:
    """Cut a span into a part of a row, groups of whole rows, and a part of a row."""
    start, stop = span.start, min(span.start + span.length, fold.size)
    while start < stop:
        row, bucket = divmod(start, fold.width)
        width = min(fold.width - bucket, stop - start)
        n_rows = 1
        if width == fold.width:
            n_rows = max(1, min((stop - start) // width, at_once // width))
        yield _Place(row, n_rows, bucket, width, span.local + start - span.start)
        start += n_rows * width


def _chunk(
    place: _Place, buffer: Tensor, fixed: Tensor, fresh: Tensor, scratch: Tensor
) -> _Chunk:
    start, stop = place.local, place.local + place.length
    blocks = slice(start // BLOCK, -(-stop // BLOCK))
    # The scratch begins where a block does, so that weights apply block by block.
    before = start - blocks.start * BLOCK
    signed = scratch[:, before : before + place.length].unflatten(1, (-1, place.width))
    used = (blocks.stop - blocks.start) * BLOCK
    signs, fresh_signs = (
        sequence.as_strided(
            (place.n_rows, place.width),
            (SHIFT, 1),
            SHIFT * place.row + place.bucket,
        )
        for sequence in (fixed, fresh)
    )
    return _Chunk(
        rows=slice(place.row, place.row + place.n_rows),
        buckets=slice(place.bucket, place.bucket + place.width),
        blocks=blocks,
        vectors=buffer[:, start:stop].unflatten(1, (-1, place.width)),
        signs=signs,
        fresh_signs=fresh_signs,
        signed=signed,
        columns=[matrix.T for matrix in signed],
        first_blocks=scratch[0, :used].view(-1, BLOCK),
    )
