"""Whether gradients are at an optimizer's step what they were when they were recorded."""

from collections.abc import Sequence
from traceback import walk_stack
from typing import Any, Final
from weakref import ref

from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer

NOTHING: Final = (None, 0)


class GradientsSeen:
    """Remembers the gradients of several optimizers, of which the first is about to step.

    Nothing is read of their values: a tensor counts the writes to it.

    Parameters
    ----------
    optimizers : sequence of torch.optim.Optimizer
        Whose gradients.
    scale : torch.Tensor or None
        The factor that was taken out of all of them.
    """

    def __init__(self, optimizers: Sequence[Optimizer], scale: Tensor | None) -> None:
        # Kept alive, a gradient would take memory that the loop has set free.
        self._seen = {id(optimizer): _marks(optimizer) for optimizer in optimizers}
        self._scaled = _scaled(optimizers)
        self._is_scale_known = scale is not None

    def are_those_of(self, optimizer: Optimizer) -> bool:
        """Whether what was recorded for another optimizer is what it steps with."""
        # A scaler unscales when it steps, and that is not counted as writing.
        if self._scaled is not None:
            is_scaled = id(optimizer) in self._scaled
            if is_scaled != self._is_scale_known:
                return False
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


def _scaled(optimizers: Sequence[Optimizer]) -> set[int] | None:
    """Return those whose gradients a GradScaler that is at a step has left as they are.

    Returns
    -------
    set of int or None
        Their ``id``; None if there is no scaler.
    """
    for frame, _ in walk_stack(None):
        if frame.f_code is GradScaler.step.__code__:
            states = frame.f_locals["self"]._per_optimizer_states
            unscaled = {
                number
                for number, state in states.items()
                if state["stage"] is not OptState.READY
            }
            return {id(optimizer) for optimizer in optimizers} - unscaled
    return None
