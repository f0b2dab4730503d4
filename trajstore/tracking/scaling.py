"""Find the GradScaler factor that gradients still contain when a step begins."""

from collections.abc import Sequence
from inspect import currentframe
from traceback import walk_stack
from typing import NamedTuple

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer


class Scaling(NamedTuple):
    """A scaling factor, and the parameters whose gradients contain it."""

    factor: Tensor  # a tensor of one element
    parameters: frozenset[int]  # ``id`` of every parameter


def scaling_at_step(
    optimizer: Optimizer, optimizers: Sequence[Optimizer]
) -> Scaling | None:
    """Return the factor that gradients contain just before an optimizer steps, if any."""
    # Before most optimizers step, the scaler divides their gradients by its factor. Fused
    # optimizers divide by the factor themselves, so the scaler gives it to them as `grad_scale`.
    factor: Tensor | None = getattr(optimizer, "grad_scale", None)
    scaled = [] if factor is None else [optimizer]
    if len(optimizers) > 1 and (scaler := _stepping_scaler()) is not None:
        factor = scaler._get_scale_async() if factor is None else factor
        states = scaler._per_optimizer_states
        other_optimizers = [o for o in optimizers if o is not optimizer]
        scaled += [
            o
            for o in other_optimizers
            if id(o) not in states or states[id(o)]["stage"] is OptState.READY
        ]
    if factor is None or not scaled:
        return None
    groups = [group for o in scaled for group in o.param_groups]
    return Scaling(factor, frozenset(id(p) for g in groups for p in g["params"]))


def unscaled(
    gradients: Sequence[Tensor | None],
    parameters: Sequence[Tensor | None],
    scaling: Scaling,
) -> list[Tensor | None]:
    """Return gradients divided by the factor that those of some parameters contain."""
    result = list(gradients)
    scaled = {
        i: gradient
        for i, gradient in enumerate(gradients)
        if gradient is not None and id(parameters[i]) in scaling.parameters
    }
    if scaled:
        inverse = scaling.factor.reshape(()).double().reciprocal().float()
        with torch.no_grad():
            divided = torch._foreach_mul([*scaled.values()], inverse)
        for i, gradient in zip(scaled, divided, strict=True):
            result[i] = gradient
    return result


def _stepping_scaler() -> GradScaler | None:
    """Return the scaler whose `step` is running, if any."""
    for frame, _ in walk_stack(currentframe()):
        if frame.f_code is GradScaler.step.__code__:
            scaler: GradScaler = frame.f_locals["self"]
            return scaler if scaler.is_enabled() else None
    return None
