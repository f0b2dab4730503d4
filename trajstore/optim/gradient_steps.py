"""Gradient steps of optimizers that have one step size for all parameters."""

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

LOWER_BOUND_ATOL: Final = 1e-6
"""Rounding error by which a computed loss may fall below its lower bound."""


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the norm of all tensors together, shape (), or 0 if there are no tensors."""
    # The norm is computed in float32 or wider, because it could overflow in half precision.
    norms = [
        torch.linalg.vector_norm(
            t.detach(), dtype=torch.promote_types(t.dtype, torch.float32)
        )
        for t in tensors
    ]
    if not norms:
        return torch.zeros(())
    total: Tensor = torch.stack([n.to(norms[0]) for n in norms]).norm()
    return total


def gradients(optimizer: Optimizer) -> list[Tensor]:
    """Return the gradients of all groups; frozen and unused parameters have none."""
    return [
        p.grad.detach()
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None
    ]


def take_gradient_steps(group: dict[str, Any], step_size: Tensor) -> None:
    """Take a gradient step in a parameter group, and store the step size in the group."""
    for p in group["params"]:
        if p.grad is not None:
            subtract_scaled(p, p.grad, step_size)
    group["step_size"] = step_size


def subtract_scaled(parameter: Tensor, direction: Tensor, step_size: Tensor) -> None:
    """Subtract the direction times the step size from a parameter."""
    # The product is computed in the wider of the parameter's and the step size's types.
    wide = torch.promote_types(parameter.dtype, step_size.dtype)
    parameter.sub_(direction.to(wide) * step_size.to(parameter.device))


def checked_loss(loss: Tensor | float | None, name: str, lower_bound: float) -> Tensor:
    """Return the loss of a batch, shape (), detached and clamped to its lower bound."""
    if loss is None:
        raise ValueError(
            f"{name} needs the loss of the batch: call optimizer.step(loss=loss)."
        )
    value = torch.as_tensor(loss).detach()
    if value.numel() != 1:
        raise ValueError(
            f"{name} needs one number as the loss, got the shape {tuple(value.shape)}; "
            "pass the mean that was differentiated."
        )
    # This comparison waits for the device that computes the loss.
    if float(value) < lower_bound - LOWER_BOUND_ATOL:
        raise ValueError(
            f"{name} needs losses of at least {lower_bound}, got {float(value)}; this "
            "lower bound does not hold for the loss."
        )
    return value.reshape(()).clamp(min=lower_bound)


def check_no_closure(closure: object, name: str) -> None:
    """Refuse a closure: a recorder cannot see gradients that are computed inside a step."""
    if closure is not None:
        raise NotImplementedError(
            f"{name} takes no closure; compute the loss and its gradients before the step."
        )


def check_at_least(name: str, value: float, minimum: float) -> None:
    """Refuse an optimizer option that is too small, or NaN."""
    # This form of the comparison also refuses NaN.
    if not value >= minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {value}.")
