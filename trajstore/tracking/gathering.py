"""Gather what all ranks hold: parameters as one flat vector, and sums by layer."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from trajstore.format.layout import Layout
from trajstore.tracking.backends.memory import UnrecordableStateError, check_tensor
from trajstore.tracking.placement import Placement, local_part


@torch.no_grad()
def gathered(
    parameters: Sequence[Tensor | None], placement: Placement, like: Tensor
) -> Callable[[slice], Tensor]:
    """Return a function that returns a range of the parameters, (element,), of the type of `like`."""
    # Without sharding, the function reads the parameters in place, so they must not change
    # before it is called. With sharding, the function of the first rank reads a copy in host
    # memory, and the functions of the other ranks read an empty tensor.
    if placement.group is None:
        return partial(_read_in_place, list(parameters), placement.layout, like)
    flat = like.new_zeros(placement.size)
    held = placement.local(parameters)
    for view, parameter in zip(placement.views(flat), held, strict=True):
        view.copy_(local_part(parameter))
    return placement.gather(flat).__getitem__


@torch.no_grad()
def _read_in_place(
    parameters: Sequence[Tensor | None],
    layout: Layout,
    like: Tensor,
    elements: slice,
) -> Tensor:
    part = like.new_zeros(elements.stop - elements.start)
    for i, (offset, size) in enumerate(
        zip(layout.offsets.tolist(), layout.sizes.tolist(), strict=True)
    ):
        first = max(elements.start, offset)
        last = min(elements.stop, offset + size)
        if first < last:
            values = _values(
                parameters[i], layout.shapes[i], first - offset, last - offset
            )
            part[first - elements.start : last - elements.start] = values
    return part


def _values(
    parameter: Tensor | None, shape: tuple[int, ...], first: int, last: int
) -> Tensor | float:
    """Return a range of the elements of a parameter, (element,); NaN if it has changed its kind."""
    assert parameter is not None
    try:
        check_tensor(parameter, "", shape)
    except UnrecordableStateError:
        return torch.nan
    return parameter.reshape(-1)[first:last]


def sums_by_layer(
    placement: Placement, layer_of_block: Tensor, block_sums: Tensor
) -> Tensor:
    """Return sums over the blocks of each layer and over ranks, float64 (layer, column)."""
    shape = len(placement.layout.names), block_sums.shape[1]
    sums = torch.zeros(shape, dtype=torch.float64, device=block_sums.device)
    sums.index_add_(0, layer_of_block, block_sums.double())
    placement.all_reduce(sums)
    return sums


def norm_of(
    vectors: Sequence[Tensor | None], placement: Placement, device: torch.device
) -> Tensor:
    """Return the norm of vectors, one per layer and each maybe sharded, a float64 scalar."""
    squares = torch.zeros(1, dtype=torch.float64, device=device)
    for vector in placement.local(vectors):
        if vector is not None:
            dense = local_part(vector).to_dense()
            norm = torch.linalg.vector_norm(dense, dtype=torch.float64)
            squares += norm.square().to(device)
    placement.all_reduce(squares)
    return squares.sqrt()[0]
