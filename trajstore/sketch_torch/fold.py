"""The torch twin of `trajstore.sketch.fold`, for the rows of a buffer.

It works a chunk of the vectors at a time, so that there is no temporary of their length,
and prepares all views of the buffer once: in a small net their making would take longer
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
"""Elements of a vector that are worked on at once: they should fit a CPU's cache, and
keep the number of kernels low on an accelerator."""


class Span(NamedTuple):
    """Neighbouring blocks.

    Attributes
    ----------
    start : int
        Element of the flat vector that they begin with.
    local : int
        Element of the rank's part that they begin with.
    length : int
        Number of elements.
    """

    start: int
    local: int
    length: int


class Weighted(NamedTuple):
    """A fold of the first vector, weighted block by block.

    Attributes
    ----------
    block_weights : torch.Tensor
        float32, one for each block of a buffer.
    row_signs : torch.Tensor
        float32, (row,).
    out : torch.Tensor
        float32, (bucket,): the fold is added to it.
    """

    block_weights: Tensor
    row_signs: Tensor
    out: Tensor


class _Chunk(NamedTuple):
    """Neighbouring elements that fill rows of the fold, or a part of one.

    Attributes
    ----------
    rows, buckets, blocks : slice
        Rows and buckets of the fold, and blocks of the buffer, that they belong to.
    vectors : torch.Tensor
        The elements, (vector, row, bucket).
    signs, fresh_signs : torch.Tensor
        Column signs, (row, bucket).
    signed : torch.Tensor
        Room for their product, (vector, row, bucket).
    columns : list of torch.Tensor
        The same, (bucket, row) for each vector.
    first_blocks : torch.Tensor
        Room of the first vector by blocks, (block, element).
    """

    rows: slice
    buckets: slice
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
        float32, (vector, size); of one shape. Their storage is kept: calls fold what it
        holds then.
    spans : sequence of Span
        Which elements of the vectors that are folded lie where in the buffers.
    """

    def __init__(
        self, fold: Fold, buffers: Sequence[Tensor], spans: Sequence[Span]
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
        """Take other column signs for the weighted fold; the others keep theirs."""
        sequence = replace(self._fold, window=window).column_sequence
        self._fresh.copy_(upload(sequence, self._fresh.device))

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
    """Where the elements of a chunk lie: in the fold, and in a buffer from `local` on."""

    row: int
    n_rows: int
    bucket: int
    width: int
    local: int

    @property
    def length(self) -> int:
        return self.n_rows * self.width


def _places(span: Span, fold: Fold, at_once: int) -> Iterator[_Place]:
    """Cut a span into a part of a row, whole rows, some at a time, and part of a row."""
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
