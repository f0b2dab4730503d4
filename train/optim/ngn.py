"""SGD with non-negative Gauss-Newton step sizes, NGN.

A. Orvieto, L. Xiao, "An Adaptive Stochastic Gradient Method with Non-negative Gauss-Newton
Stepsizes", NeurIPS 2024. arXiv 2407.04358.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from train.optim.gradient_steps import (
    checked_loss,
    descend,
    gradients,
    norm,
    refuse_below,
    refuse_closure,
)


def ngn_step_size(loss: Tensor, gradient_sq: Tensor, *, largest: float) -> Tensor:
    """Return ``largest / (1 + largest |g|^2 / (2 loss))``.

    Parameters
    ----------
    loss : torch.Tensor
        Of the batch, shape (), not negative.
    gradient_sq : torch.Tensor
        Squared norm of its gradient, shape ().
    largest : float
        What the step size tends to where the gradient vanishes.

    Returns
    -------
    torch.Tensor
        Shape (); 0 where only the loss is 0, and the largest where the gradient is.
    """
    divisor = 1 + largest * gradient_sq / (2 * loss)
    return torch.where(gradient_sq > 0, largest / divisor, largest)


class NGN(Optimizer):
    r"""Steps against the gradient that are smaller where it is steep for its loss.

    :math:`x_{k+1} = x_k - \gamma_k g_k` with
    :math:`\gamma_k = \gamma / (1 + \gamma |g_k|^2 / (2 f_i(x_k)))` and the norm over the
    parameters of all groups.

    After a step ``group["step_size"]`` is :math:`\gamma_k`.

    Parameters
    ----------
    params : iterable
        As of every optimizer of torch.
    lr : float
        The largest step size, :math:`\gamma`; the authors write sigma.

    Raises
    ------
    ValueError
        If `lr` is negative.
    """

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        refuse_below("lr", lr, 0)
        super().__init__(params, {"lr": lr, "step_size": float("nan")})

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: None = None, *, loss: Tensor | float | None = None
    ) -> None:
        """Take a step.

        Parameters
        ----------
        closure : None
            There is none.
        loss : torch.Tensor or float
            What the gradients are of, one number that is not negative.
        """
        refuse_closure(closure, "NGN")
        value = checked_loss(loss, "NGN", 0.0)
        gradient_sq = norm(gradients(self)).square()
        value = value.to(gradient_sq)
        for group in self.param_groups:
            size = ngn_step_size(value, gradient_sq, largest=group["lr"])
            descend(group, size)
