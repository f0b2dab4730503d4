"""Look up the addresses of tensors for compiled loops, quickly where tensors did not change."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajstore.format.layout import Layout
from trajstore.tracking.backends.memory import row_major

Integers = npt.NDArray[np.int64]

# With `map`, a look-up takes a third of the time of a loop, which counts for many small tensors.
_dtype, _shape, _is_cpu = map(attrgetter, ("dtype", "shape", "is_cpu"))


class Addresses:
    """Looks up addresses of tensors, one per layer, for kernels that read float32 numbers."""

    def __init__(self, layout: Layout, parameters: Sequence[Tensor | None]) -> None:
        # Tuples would take three times as long to compare with shapes of tensors.
        self._names, self._shapes = layout.names, [torch.Size(s) for s in layout.shapes]
        self._sizes = layout.sizes.tolist()
        self._dtypes = [torch.float32] * len(layout.names)
        self.follow(parameters)

    def follow(self, parameters: Sequence[Tensor | None]) -> None:
        """Follow other parameters of the same shapes from now on."""
        self._parameters: list[Any] = list(parameters)
        # The last addresses, if all parameters could be read in place.
        self._last: list[int] | None = None
        self._array = np.zeros(0, np.int64)

    def of_parameters(
        self, parts: Sequence[Tensor | None] | None = None
    ) -> tuple[Integers, list[Tensor]]:
        """Return the addresses of the parameters, and the copies that were necessary."""
        # `parts` are the parts of the parameters on this rank, if these are not whole.
        if parts is not None:
            self._parameters = list(parts)
        if self._last is None or not self._are_same():
            self._array, copies = self.of(self._parameters)
            is_lasting = not copies and all(p is not None for p in self._parameters)
            self._last = self._array.tolist() if is_lasting else None
            return self._array, copies
        return self._array, []

    def of(self, tensors: Sequence[Tensor | None]) -> tuple[Integers, list[Tensor]]:
        """Return the addresses of tensors, 0 for None, and the copies that were necessary."""
        # The addresses are valid as long as the caller keeps the tensors and the copies.
        addresses = self._in_place(tensors, self._shapes, self._dtypes)
        if addresses is not None:
            return np.array(addresses, np.int64), []
        held = [t for t in tensors if t is not None]
        if len(held) < len(tensors):
            shapes = [
                s for t, s in zip(tensors, self._shapes, strict=True) if t is not None
            ]
            addresses = self._in_place(held, shapes, self._dtypes[: len(held)])
        if addresses is None:
            return self._with_copies(tensors)
        found = iter(addresses)
        return np.array(
            [0 if t is None else next(found) for t in tensors], np.int64
        ), []

    def _are_same(self) -> bool:
        """Whether the parameters are row-major float32 numbers at their last addresses."""
        parameters = self._parameters
        try:
            return (
                [*map(Tensor.data_ptr, parameters)] == self._last
                and all(map(Tensor.is_contiguous, parameters))
                and [*map(_dtype, parameters)] == self._dtypes
                and [*map(Tensor.numel, parameters)] == self._sizes
            )
        except RuntimeError:
            # A parameter has no memory of its own now.
            return False

    def _in_place(
        self, tensors: Sequence[Any], shapes: Sequence[Any], dtypes: Sequence[Any]
    ) -> list[int] | None:
        """Return the addresses of tensors; None if kernels cannot read all of them in place."""
        try:
            addresses = [*map(Tensor.data_ptr, tensors)]
            is_readable = (
                all(addresses)
                and all(map(Tensor.is_contiguous, tensors))
                and [*map(_dtype, tensors)] == dtypes
                and [*map(_shape, tensors)] == shapes
                and all(map(_is_cpu, tensors))
                and not any(map(Tensor.is_neg, tensors))
            )
        except (RuntimeError, TypeError):
            # Sparse tensors have no address, and None is no tensor.
            return None
        return addresses if is_readable else None

    def _with_copies(
        self, tensors: Sequence[Tensor | None]
    ) -> tuple[Integers, list[Tensor]]:
        """Return the addresses of tensors, some of which kernels cannot read in place."""
        addresses, copies, devices = [], [], set()
        for tensor, name, shape in zip(tensors, self._names, self._shapes, strict=True):
            if tensor is None:
                addresses.append(0)
                continue
            # The copy of a tensor that is row-major already is the tensor itself.
            copies.append(row_major(tensor, name, shape, _as_float32))
            addresses.append(copies[-1].data_ptr())
            if tensor.is_cuda:
                devices.add(tensor.device)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return np.array(addresses, np.int64), copies


def _as_float32(tensor: Tensor) -> Tensor:
    """Return a float32 copy in the memory of the CPU; the copy may still be in progress."""
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.detach().resolve_neg()
    if not tensor.is_cuda:
        return tensor.to("cpu", torch.float32).contiguous()
    # The caller waits once for the copies of all tensors.
    pinned = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
