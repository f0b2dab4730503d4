"""SGD with a stochastic Polyak step size that is bounded, SPSmax.

N. Loizou, S. Vaswani, I. Laradji, S. Lacoste-Julien, "Stochastic Polyak Step-size for SGD:
An Adaptive Learning Rate for Fast Convergence", AISTATS 2021. arXiv 2002.10542.
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


def sps_max_step_size(
    loss: Tensor, gradient_sq: Tensor, *, largest: float, c: float, f_star: float
) -> Tensor:
    """Return ``min((loss - f_star) / (c |g|^2), largest)``.

    Parameters
    ----------
    loss : torch.Tensor
        Of the batch, shape ().
    gradient_sq : torch.Tensor
        Squared norm of its gradient, shape ().
    largest : float
        Bound of the step size.
    c : float
        Positive.
    f_star : float
        Smallest loss that the batch can have.

    Returns
    -------
    torch.Tensor
        Shape (); the bound where the gradient is 0.
    """
    polyak = (loss - f_star) / (c * gradient_sq)
    return torch.where(gradient_sq > 0, polyak.clamp(max=largest), largest)


class SPSmax(Optimizer):
    r"""Steps against the gradient, of Polyak's size or the largest that is allowed.

    :math:`x_{k+1} = x_k - \gamma_k g_k` with
    :math:`\gamma_k = \min\{(f_i(x_k) - f_i^*) / (c |g_k|^2), \gamma_b\}` and the norm over
    the parameters of all groups.

    After a step ``group["step_size"]`` is :math:`\gamma_k`.

    Parameters
    ----------
    params : iterable
        As of every optimizer of torch.
    lr : float
        The bound :math:`\gamma_b`.
    c : float, default: 0.5
        The authors' choice for convex losses.
    f_star : float, default: 0.0
        The smallest loss :math:`f_i^*` of any batch, or a lower bound of it.

    Raises
    ------
    ValueError
        If `lr` is negative or `c` is not positive.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, c: float = 0.5, f_star: float = 0.0
    ) -> None:
        refuse_below("lr", lr, 0)
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
            There is none.
        loss : torch.Tensor or float
            What the gradients are of, one number.
        """
        refuse_closure(closure, "SPSmax")
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
            descend(group, size)
