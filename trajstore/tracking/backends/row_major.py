"""Tensors whose elements a kernel may read from their addresses."""

from collections.abc import Callable

from torch import Tensor


def row_major(
    tensor: Tensor,
    name: str,
    shape: tuple[int, ...],
    as_row_major: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return a tensor whose elements lie one behind the other, in row-major order.

    Parameters
    ----------
    tensor : torch.Tensor
        A parameter, or its gradient.
    name : str
        Of the parameter.
    shape : tuple of int
        That it had when the recorder was made.
    as_row_major : callable
        Returns a tensor itself if its elements can be read as they are, or a copy.

    Returns
    -------
    torch.Tensor
        To be kept for as long as its elements are read.

    Raises
    ------
    ValueError
        If it has another shape, or no memory.
    """
    if tensor.shape != shape:
        raise ValueError(
            f"{name} has the shape {tuple(tensor.shape)}, but had {shape} when the "
            "recorder was made, which follows parameters of fixed shapes. Make a new "
            "recorder after such a change."
        )
    elements = as_row_major(tensor)
    if elements.data_ptr() == 0 and elements.numel() > 0:
        raise ValueError(
            f"{name} has no memory at the optimizer's step. Parameters that are sharded "
            "otherwise than as DTensors, or offloaded, cannot be recorded."
        )
    return elements
