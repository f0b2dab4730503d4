"""Whether gradients are at an optimizer's step what they were when they were recorded."""

from collections.abc import Sequence
from typing import Any, Final
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer

NOTHING: Final = (None, 0)


class GradientsSeen:
    """Remembers the gradients of several optimizers, of which the first is about to step.

    Nothing is read of their values: a tensor counts the writes to it.

    Parameters
    ----------
    optimizers : sequence of torch.optim.Optimizer
        Whose gradients.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        # Kept alive, a gradient would take memory that the loop has set free.
        self._seen = {id(optimizer): _marks(optimizer) for optimizer in optimizers}

    def are_those_of(self, optimizer: Optimizer) -> bool:
        """Whether what was recorded for another optimizer is what it steps with."""
        # What a scaler takes out of them is not counted as writing.
        seen, now = self._seen[id(optimizer)], _marks(optimizer)
        # Equality of references would be that of tensors. To one object there is one.
        return len(seen) == len(now) and all(
            before is after and n_before == n_after
            for (before, n_before), (after, n_after) in zip(seen, now, strict=True)
        )


def _marks(optimizer: Optimizer) -> list[tuple[Any, int]]:
    groups = optimizer.param_groups
    return [_mark(p.grad) for group in groups for p in group["params"]]


def _mark(gradient: Tensor | None) -> tuple[Any, int]:
    return NOTHING if gradient is None else (ref(gradient), gradient._version)
