"""SGD with non-negative Gauss-Newton step sizes, NGN.

A. Orvieto, L. Xiao, "An Adaptive Stochastic Gradient Method with Non-negative Gauss-Newton
Stepsizes", NeurIPS 2024. arXiv 2407.04358.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trajstore.optim.gradient_steps import (
    check_at_least,
    check_no_closure,
    checked_loss,
    gradients,
    norm,
    take_gradient_steps,
)


def ngn_step_size(loss: Tensor, gradient_sq: Tensor, *, largest: float) -> Tensor:
    """Return ``largest / (1 + largest * gradient_sq / (2 * loss))``, shape ()."""
    # A gradient of 0 gives the largest step size. With any other gradient, a loss of 0 gives
    # a step size of 0.
    divisor = 1 + largest * gradient_sq / (2 * loss)
    return torch.where(gradient_sq > 0, largest / divisor, largest)


class NGN(Optimizer):
    r"""SGD with step sizes that shrink if the gradient is large relative to the loss.

    :math:`x_{k+1} = x_k - \gamma_k g_k` with
    :math:`\gamma_k = \gamma / (1 + \gamma |g_k|^2 / (2 f_i(x_k)))`, where :math:`f_i` is the
    loss of the batch. The norm is over the gradients of all groups.

    After a step, ``group["step_size"]`` holds :math:`\gamma_k`.

    Parameters
    ----------
    params : iterable
        Parameters or parameter groups, as for `torch.optim.SGD`.
    lr : float
        Largest step size, :math:`\gamma`; the authors write sigma.

    Raises
    ------
    ValueError
        If `lr` is negative.
    """

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        check_at_least("lr", lr, 0)
        super().__init__(params, {"lr": lr, "step_size": float("nan")})

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: None = None, *, loss: Tensor | float | None = None
    ) -> None:
        """Take a step.

        Parameters
        ----------
        closure : None
            Not supported; must be None.
        loss : torch.Tensor or float
            The loss whose gradients the parameters hold: one non-negative number.
        """
        check_no_closure(closure, "NGN")
        value = checked_loss(loss, "NGN", 0.0)
        gradient_sq = norm(gradients(self)).square()
        value = value.to(gradient_sq)
        for group in self.param_groups:
            size = ngn_step_size(value, gradient_sq, largest=group["lr"])
            take_gradient_steps(group, size)
