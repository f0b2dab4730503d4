"""Detect gradients that have changed since they were recorded."""

from collections.abc import Sequence
from typing import Any, Final
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer

NO_GRADIENT: Final = (None, 0)


class GradientVersions:
    """Versions of all gradients when the first of several optimizers is about to step.

    Gradient values are not read: every tensor counts the writes to it.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        # Weak references: holding the gradients would keep freed memory alive.
        self._versions = {
            id(optimizer): _versions(optimizer) for optimizer in optimizers
        }

    def match(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer still has the same gradients, with no writes to them."""
        # Tensors do not count the writes by which a GradScaler unscales them.
        before, now = self._versions[id(optimizer)], _versions(optimizer)
        # Compare weak references by identity: their `==` would compare tensor values.
        return len(before) == len(now) and all(
            old is new and n_before == n_now
            for (old, n_before), (new, n_now) in zip(before, now, strict=True)
        )


def _versions(optimizer: Optimizer) -> list[tuple[Any, int]]:
    groups = optimizer.param_groups
    return [_version(p.grad) for group in groups for p in group["params"]]


def _version(gradient: Tensor | None) -> tuple[Any, int]:
    return NO_GRADIENT if gradient is None else (ref(gradient), gradient._version)
