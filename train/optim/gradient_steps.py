"""What optimizers share whose step size is one number for all parameters."""

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

ROUNDING: Final = 1e-6
"""By how much a computed loss may be below a bound of the exact one."""


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the norm of tensors, taken together as one vector.

    Parameters
    ----------
    tensors : iterable of torch.Tensor
        Of any shapes, floating types and devices.

    Returns
    -------
    torch.Tensor
        Shape (), on the device of the first; float32 where they are of half precision;
        0 if there are none.
    """
    norms = [
        torch.linalg.vector_norm(
            t.detach(), dtype=torch.promote_types(t.dtype, torch.float32)
        )
        for t in tensors
    ]
    if not norms:
        return torch.zeros(())
    whole: Tensor = torch.stack([n.to(norms[0]) for n in norms]).norm()
    return whole


def gradients(optimizer: Optimizer) -> list[Tensor]:
    """Return the gradients of all groups; frozen and unused parameters have none."""
    return [
        p.grad.detach()
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None
    ]


def descend(group: dict[str, Any], step_size: Tensor) -> None:
    """Move the parameters of a group against their gradients, and note by how much.

    Parameters
    ----------
    group : dict
        Of an optimizer; gets ``step_size``.
    step_size : torch.Tensor
        Shape (); what gradients are multiplied with.
    """
    for p in group["params"]:
        if p.grad is not None:
            move(p, p.grad, step_size)
    group["step_size"] = step_size


def move(parameter: Tensor, direction: Tensor, step_size: Tensor) -> None:
    """Subtract a direction times a step size, which half precision may not hold."""
    wide = torch.promote_types(parameter.dtype, step_size.dtype)
    parameter.sub_(direction.to(wide) * step_size.to(parameter.device))


def checked_loss(loss: Tensor | float | None, name: str, least: float) -> Tensor:
    """Return the loss of a batch, for a step size that depends on it.

    Parameters
    ----------
    loss : torch.Tensor, float or None
        What was given to ``step``.
    name : str
        Of the optimizer, for messages.
    least : float
        What no loss is below, but for rounding. Comparing them waits for the device of
        the loss.

    Returns
    -------
    torch.Tensor
        Shape (), without its graph, at least `least`. NaN where it is not a number.

    Raises
    ------
    ValueError
        If there is none, if it is no single number, or if it is less than `least`.
    """
    if loss is None:
        raise ValueError(
            f"{name} needs the loss of the batch: call optimizer.step(loss=loss)."
        )
    value = torch.as_tensor(loss).detach()
    if value.numel() != 1:
        raise ValueError(
            f"{name} needs one number as loss, got the shape {tuple(value.shape)}; give "
            "the mean that was differentiated."
        )
    if float(value) < least - ROUNDING:
        raise ValueError(
            f"{name} needs losses of at least {least}, got {float(value)}; their lower "
            "bound is wrong."
        )
    return value.reshape(()).clamp(min=least)


def refuse_closure(closure: object, name: str) -> None:
    """Refuse to evaluate the loss inside of a step, where no recorder sees the gradient.

    Parameters
    ----------
    closure : object
        What was given to ``step``.
    name : str
        Of the optimizer, for messages.

    Raises
    ------
    NotImplementedError
        If it is not None.
    """
    if closure is not None:
        raise NotImplementedError(
            f"{name} takes no closure; evaluate the loss and its gradients before the step."
        )


def refuse_below(name: str, value: float, least: float) -> None:
    """Refuse an option of an optimizer that is too small, or not a number.

    Parameters
    ----------
    name : str
        Of the option.
    value : float
        What was given.
    least : float
        What it has to be at least.

    Raises
    ------
    ValueError
        If it is less.
    """
    if not value >= least:
        raise ValueError(f"{name}: expected at least {least}, got {value}.")
