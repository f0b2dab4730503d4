"""Sums over ranks that are computed while training continues."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


class Reduction:
    """Sums of tensors over the ranks of a group, for the first rank.

    All ranks begin the same sums in the same order, each between two operations of its training, so
    that operations of one group meet in the same order on all ranks, whoever waits for them when.
    """

    def __init__(
        self, tensors: Sequence[Tensor], large: Tensor | None, group: Any
    ) -> None:
        # Callers may overwrite the tensors until `finish`, but not the large one.
        self._group, self._tensors = group, tensors
        parts = [tensor.reshape(-1).double() for tensor in tensors]
        self._sums = torch.cat(parts)
        summed = [self._sums] if large is None else [large, self._sums]
        self._works = [
            dist.reduce(total, group_dst=0, group=group, async_op=True)
            for total in summed
        ]

    def finish(self, *, waits: bool = True) -> None:
        """Write the sums to the tensors of the first rank; wait for them, or raise an error."""
        if not (waits or all(work.is_completed() for work in self._works)):
            raise RuntimeError("The sums over the ranks have not arrived.")
        for work in self._works:
            work.wait()
        if dist.get_rank(self._group) > 0:
            return
        parts = self._sums.split([tensor.numel() for tensor in self._tensors])
        for tensor, part in zip(self._tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))
