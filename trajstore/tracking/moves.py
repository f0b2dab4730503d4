"""Move the anchor to the parameters, and measure the move, piece by piece of the flat vector.

Backends that hold short forms of their vectors have no displacement as long as the parameters.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trajstore.format.layout import BLOCK
from trajstore.sketch_torch import deltas as deltas_torch
from trajstore.tracking.backends.protocol import StepBackend
from trajstore.tracking.past_anchors import PastAnchors


class Arrival(NamedTuple):
    """Measurements of the displacement at the end of a window."""

    # Products with itself, the anchor and displacements from past anchors, (block, vector).
    products: Tensor
    scales: Tensor  # float32 (block,): scales of its code
    pair: Tensor | None  # the result of `read_displacement`, if there is only one piece


def block_products(vector: Tensor, others: Tensor) -> Tensor:
    """Return inner products of a vector (size,) with others (other, size), (block, other)."""
    # Multiplying a row by a matrix is several times as fast as a matrix by a column.
    row = vector.view(-1, 1, BLOCK)
    return torch.bmm(row, others.unflatten(1, (-1, BLOCK)).permute(1, 2, 0))[:, 0]


def arrive(backend: StepBackend, past: PastAnchors) -> Arrival:
    """Measure the displacement of the parameters from the anchor."""
    n_blocks, pair = len(backend.anchor) // BLOCK, None
    products = backend.anchor.new_empty(n_blocks, 2 + past.n_vectors)
    scales = products.new_empty(n_blocks, dtype=torch.float32)
    for piece in backend.pieces:
        pair, blocks = backend.read_displacement(piece), _blocks(piece)
        products[blocks, :2] = block_products(pair[0], pair)
        products[blocks, 2:] = past.products(pair[:1], piece.start)[:, 0]
        piece_scales = scales[blocks]
        for elements, chunk in deltas_torch.chunks(pair.shape[1], pair.device):
            piece_scales[chunk] = deltas_torch.block_scales(pair[0, elements])
    return Arrival(products, scales, pair if len(backend.pieces) == 1 else None)


def move(
    backend: StepBackend,
    codes: Tensor,  # int8 (size,): overwritten with the codes of the displacement
    arrival: Arrival,
    *,
    probes: bool,
) -> tuple[Tensor, Tensor | None]:
    """Move the anchor by the decoded code; return |move|^2, (block, 1), and its probes."""
    scales = arrival.scales
    squares, total = scales.new_empty(len(scales), 1, dtype=backend.anchor.dtype), None
    for piece in backend.pieces:
        pair = arrival.pair
        if pair is None:
            pair = backend.read_displacement(piece)
        vector, piece_codes = pair[0], codes[piece]
        piece_scales = scales[_blocks(piece)]
        for elements, blocks in deltas_torch.chunks(len(vector), vector.device):
            code, scale = piece_codes[elements], piece_scales[blocks]
            code.copy_(deltas_torch.encode(vector[elements], scale))
            vector[elements] = deltas_torch.decode(code, scale)
        backend.anchor[piece].add_(vector)
        squares[_blocks(piece)] = block_products(vector, pair[:1])
        if probes:
            total = _added(total, backend.probe_displacement())
    return squares, total


def probes_of(
    backend: StepBackend, prepare: Callable[[Tensor, Tensor], object]
) -> Tensor:
    """Return the probes of the displacement on this rank, which a function changes before."""
    # The function is called with the displacement and the anchor of every piece.
    total = None
    for piece in backend.pieces:
        prepare(backend.read_displacement(piece)[0], backend.anchor[piece])
        total = _added(total, backend.probe_displacement())
    assert total is not None
    return total


def squares(backend: StepBackend) -> Tensor:
    """Return |displacement|^2 of the parameters, (block, 1)."""
    parts = []
    for piece in backend.pieces:
        vectors = backend.read_displacement(piece)[:1]
        parts.append(block_products(vectors[0], vectors))
    return torch.cat(parts)


def _blocks(piece: slice) -> slice:
    """Return the blocks of a range of elements."""
    return slice(piece.start // BLOCK, piece.stop // BLOCK)


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    """Add up probes of pieces in float64."""
    return part if total is None else total.double() + part
