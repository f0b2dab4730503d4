"""Sums over ranks that are computed while training continues."""

from collections import defaultdict
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

    def __init__(self, tensors: Sequence[Tensor], group: Any) -> None:
        # Takes copies: callers may overwrite the tensors until `finish`.
        by_type: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for tensor in tensors:
            by_type[tensor.dtype].append(tensor)
        self._group, self._tensors = group, list(by_type.values())
        self._sums = [
            torch.cat([t.reshape(-1) for t in same]) for same in self._tensors
        ]
        self._works = [
            dist.reduce(total, group_dst=0, group=group, async_op=True)
            for total in self._sums
        ]

    def finish(self, *, waits: bool = True) -> None:
        """Write the sums to the tensors of the first rank; wait for them, or raise an error."""
        if not (waits or all(work.is_completed() for work in self._works)):
            raise RuntimeError("The sums over the ranks have not arrived.")
        for work in self._works:
            work.wait()
        if dist.get_rank(self._group) > 0:
            return
        for same, total in zip(self._tensors, self._sums, strict=True):
            parts = total.split([tensor.numel() for tensor in same])
            for tensor, part in zip(same, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))
