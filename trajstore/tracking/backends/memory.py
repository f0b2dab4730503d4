"""Prepare memory that kernels read: page-aligned zeros and row-major tensors."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Final

import numpy as np
import torch
from torch import Tensor

PAGE: Final = 4096
"""Size of a memory page in bytes. Every tensor begins at the start of a page, because some CPUs
compare loads with earlier stores only by their offsets in a page. If the offset of a load is a
few bytes larger than that of a store, such a CPU mistakes the load for a load of the stored
value."""


class UnrecordableStateError(ValueError):
    """The tensors of the training run can no longer be recorded."""


def check_tensor(
    tensor: Tensor, name: str, shape: Sequence[int], *, may_be_meta: bool = False
) -> None:
    """Raise an error if a tensor does not have the recorded shape, and real elements."""
    if tensor.shape != shape:
        found = f"has the shape {tuple(tensor.shape)}, but had {tuple(shape)}"
    elif tensor.dtype.is_complex:
        found = f"is {tensor.dtype}, but was real"
    elif tensor.is_meta and not may_be_meta:
        found = "is on the device 'meta', but had elements"
    else:
        return
    raise UnrecordableStateError(
        f"{name} {found} when the recorder was created. A recorder follows parameters of fixed "
        "shapes that have real elements: create a new recorder, with a store of its own, after "
        "such a change."
    )


def huge_zeros(*shape: int, device: torch.device) -> Tensor:
    """Return float32 zeros, in pages of 2 MB if the system supports them."""
    # A CPU reads such huge pages up to twice as fast as small pages.
    if device.type != "cpu":
        return torch.zeros(shape, dtype=torch.float32, device=device)
    # On Linux, NumPy requests huge pages for large arrays; torch does not.
    words = np.zeros(prod(shape) + PAGE // 4, np.float32)
    first = -words.ctypes.data % PAGE // 4
    return torch.from_numpy(words[first : first + prod(shape)].reshape(shape))


def row_major(
    tensor: Tensor,
    name: str,
    shape: tuple[int, ...],
    as_row_major: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return a row-major tensor, which the caller must keep while kernels read it."""
    # `as_row_major` returns the tensor itself if kernels can read it in place, else a copy.
    check_tensor(tensor, name, shape)
    elements = as_row_major(tensor)
    if elements.data_ptr() == 0 and elements.numel() > 0:
        raise UnrecordableStateError(
            f"{name} has no memory at the optimizer's step. Parameters that are offloaded, "
            "or sharded without DTensor, cannot be recorded."
        )
    return elements
