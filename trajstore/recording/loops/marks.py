"""Notice that parameters were moved, without reading all of them."""

from collections.abc import Sequence
from ctypes import string_at
from typing import Any, Final

import torch
from torch import Tensor

N_SAMPLED: Final = 3
"""Number of tensors of which addresses and some elements are compared."""

N_BYTES: Final = 64
"""Number of bytes that are compared in the middle of such a tensor."""


class Marks:
    """Marks that change if tensors are written to, or get other memory.

    Every tensor counts the writes to it. Writes through ``.data`` are not counted; a few tensors
    are therefore also compared by address and, in the memory of a CPU, by some elements.
    """

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        # Tensors made in inference mode do not count writes.
        held = [t for t in tensors if t is not None]
        self._counted = [t for t in held if not t.is_inference()]
        # A wrapper, such as a DTensor, has no memory of its own.
        plain = [t for t in held if has_memory(t)]
        self._sampled = plain[:: max(1, -(-len(plain) // N_SAMPLED))]

    def read(self) -> list[Any]:
        """Return the current marks; equal lists mean that no change was noticed."""
        marks: list[Any] = [t._version for t in self._counted]
        marks += map(sample, self._sampled)
        return marks


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor holds its elements itself."""
    is_plain = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    return is_plain and tensor.layout is torch.strided


def sample(tensor: Tensor) -> tuple[int, bytes]:
    """Return the address of a tensor, and some elements if they are in the memory of a CPU."""
    address = tensor.data_ptr()
    if not tensor.is_cpu or address == 0 or not tensor.is_contiguous():
        return address, b""
    middle, n_bytes = tensor.nbytes // 2, tensor.nbytes
    return address, string_at(address + middle, min(N_BYTES, n_bytes - middle))


class GradientPoint:
    """Notices that parameters were moved between the backward pass and the step.

    A hook of one parameter keeps its marks when its gradient is made.
    """

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        suitable = [
            t
            for t in tensors
            if t is not None
            and t.requires_grad
            and t.is_leaf
            and not t.is_inference()
            and has_memory(t)
        ]
        self._tensor = max(suitable, key=Tensor.numel, default=None)
        self._seen: Any = None
        self._handle: Any = None
        if self._tensor is not None:
            # A compiled backward pass would otherwise compile the hook.
            hook = torch.compiler.disable(self._note)
            self._handle = self._tensor.register_post_accumulate_grad_hook(hook)

    def _note(self, tensor: Tensor) -> None:
        self._seen = tensor._version, sample(tensor)

    def has_moved(self) -> bool:
        """Whether the parameter was moved since its gradient was made; forgets the gradient."""
        seen, self._seen = self._seen, None
        tensor = self._tensor
        return seen is not None and seen != (tensor._version, sample(tensor))  # type: ignore[union-attr, arg-type]

    def remove(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
