"""Memory that kernels read: page-aligned zeros, and row-major views of tensors."""

from collections.abc import Callable
from math import prod
from typing import Final

import numpy as np
import torch
from torch import Tensor

PAGE: Final = 4096
"""Bytes. Tensors begin with a page: a CPU that compares addresses of loads and stores only
within pages mistakes a read a few bytes after a written address for a read of the written value."""


def huge_zeros(*shape: int, device: torch.device) -> Tensor:
    """Return float32 zeros, in pages of 2 MB where the system has them."""
    # A CPU reads huge pages up to twice as fast.
    if device.type != "cpu":
        return torch.zeros(shape, dtype=torch.float32, device=device)
    # On Linux NumPy asks for huge pages where an array is large; torch does not.
    words = np.zeros(prod(shape) + PAGE // 4, np.float32)
    first = -words.ctypes.data % PAGE // 4
    return torch.from_numpy(words[first : first + prod(shape)].reshape(shape))


def row_major(
    tensor: Tensor,
    name: str,
    shape: tuple[int, ...],
    as_row_major: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return a row-major tensor of the recorded shape, to be kept while it is read."""
    # `as_row_major` returns a tensor that can be read in place as it is, others copied.
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
