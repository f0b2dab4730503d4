"""SGD with bounded stochastic Polyak step sizes, SPSmax.

N. Loizou, S. Vaswani, I. Laradji, S. Lacoste-Julien, "Stochastic Polyak Step-size for SGD:
An Adaptive Learning Rate for Fast Convergence", AISTATS 2021. arXiv 2002.10542.
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


def sps_max_step_size(
    loss: Tensor, gradient_sq: Tensor, *, largest: float, c: float, f_star: float
) -> Tensor:
    """Return ``min((loss - f_star) / (c * gradient_sq), largest)``, shape ()."""
    # A gradient of 0 gives the largest step size.
    polyak = (loss - f_star) / (c * gradient_sq)
    return torch.where(gradient_sq > 0, polyak.clamp(max=largest), largest)


class SPSmax(Optimizer):
    r"""SGD with Polyak's step size, bounded from above.

    :math:`x_{k+1} = x_k - \gamma_k g_k` with
    :math:`\gamma_k = \min\{(f_i(x_k) - f_i^*) / (c |g_k|^2), \gamma_b\}`, where :math:`f_i` is
    the loss of the batch. The norm is over the gradients of all groups.

    After a step, ``group["step_size"]`` holds :math:`\gamma_k`.

    Parameters
    ----------
    params : iterable
        Parameters or parameter groups, as for `torch.optim.SGD`.
    lr : float
        Largest step size :math:`\gamma_b`.
    c : float, default: 0.5
        Positive divisor; 0.5 is the authors' choice for convex losses.
    f_star : float, default: 0.0
        Smallest loss :math:`f_i^*` of any batch, or a lower bound on it.

    Raises
    ------
    ValueError
        If `lr` is negative or `c` is not positive.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, c: float = 0.5, f_star: float = 0.0
    ) -> None:
        check_at_least("lr", lr, 0)
        if not c > 0:
            raise ValueError(f"c: expected a positive number, got {c}.")
        self._f_star = f_star
        super().__init__(params, {"lr": lr, "c": c, "step_size": float("nan")})

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
            The loss whose gradients the parameters hold: one number.
        """
        check_no_closure(closure, "SPSmax")
        value = checked_loss(loss, "SPSmax", self._f_star)
        gradient_sq = norm(gradients(self)).square()
        value = value.to(gradient_sq)
        for group in self.param_groups:
            size = sps_max_step_size(
                value,
                gradient_sq,
                largest=group["lr"],
                c=group["c"],
                f_star=self._f_star,
            )
            take_gradient_steps(group, size)
