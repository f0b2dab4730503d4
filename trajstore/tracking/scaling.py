"""Find the factor of a GradScaler that gradients still contain when a step begins."""

from collections.abc import Sequence
from inspect import currentframe
from traceback import walk_stack
from typing import NamedTuple

from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer


class Scaling(NamedTuple):
    """A factor, and the parameters whose gradients contain it."""

    factor: Tensor  # one element
    parameters: frozenset[int]  # the ``id`` of each parameter


def scaling_at_step(
    optimizer: Optimizer, optimizers: Sequence[Optimizer]
) -> Scaling | None:
    """Return the factor in gradients when one of the optimizers is about to step, if any."""
    # Before most optimizers step the scaler takes its factor out of their gradients; fused
    # ones do so themselves, and know it.
    factor: Tensor | None = getattr(optimizer, "grad_scale", None)
    scaled = [] if factor is None else [optimizer]
    if len(optimizers) > 1 and (scaler := _stepping_scaler()) is not None:
        factor = scaler._get_scale_async() if factor is None else factor
        states = scaler._per_optimizer_states
        others = [o for o in optimizers if o is not optimizer]
        scaled += [
            o
            for o in others
            if id(o) not in states or states[id(o)]["stage"] is OptState.READY
        ]
    if factor is None or not scaled:
        return None
    groups = [group for o in scaled for group in o.param_groups]
    return Scaling(factor, frozenset(id(p) for g in groups for p in g["params"]))


def _stepping_scaler() -> GradScaler | None:
    """Return the scaler whose `step` is running, if any."""
    for frame, _ in walk_stack(currentframe()):
        if frame.f_code is GradScaler.step.__code__:
            scaler: GradScaler = frame.f_locals["self"]
            return scaler if scaler.is_enabled() else None
    return None
