"""Tensors whose elements a kernel may read from their addresses."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor


def row_major(
    tensors: Sequence[Tensor | None],
    shapes: Mapping[str, tuple[int, ...]],
    as_row_major: Callable[[Tensor], Tensor],
) -> list[Tensor | None]:
    """Return tensors whose elements lie one behind the other, in row-major order.

    Parameters
    ----------
    tensors : sequence of torch.Tensor or None
        One for each shape.
    shapes : mapping from str to tuple of int
        By name of the parameter.
    as_row_major : callable
        Returns a tensor itself if its elements can be read as they are, or a copy.

    Returns
    -------
    list of torch.Tensor or None
        To be kept for as long as their elements are read.

    Raises
    ------
    ValueError
        If one has another shape, or no memory.
    """
    found: list[Tensor | None] = []
    for tensor, (name, shape) in zip(tensors, shapes.items(), strict=True):
        if tensor is None:
            found.append(None)
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)}, but had {shape} when the "
                "recorder was made, which follows parameters of fixed shapes. Make a "
                "new recorder after such a change."
            )
        elements = as_row_major(tensor)
        if elements.data_ptr() == 0 and elements.numel() > 0:
            raise ValueError(
                f"{name} has no memory at the optimizer's step. Sharded or offloaded "
                "parameters cannot be recorded."
            )
        found.append(elements)
    return found
