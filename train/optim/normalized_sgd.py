"""Normalised SGD with momentum.

A. Cutkosky, H. Mehta, "Momentum Improves Normalized SGD", ICML 2020. arXiv 2002.03305.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from train.optim.gradient_steps import (
    check_at_least,
    check_no_closure,
    norm,
    subtract_scaled,
)


def updated_momentum(gradient: Tensor, momentum: Tensor, beta: float) -> Tensor:
    """Return ``beta * momentum + (1 - beta) * gradient``."""
    return beta * momentum + (1 - beta) * gradient


def normalized_step_size(momentum_norm: Tensor, lr: float) -> Tensor:
    """Return ``lr / |m|``, shape (), or 0 if the momentum is 0 and has no direction."""
    return torch.where(momentum_norm > 0, lr / momentum_norm, 0.0)


class NormalizedSGD(Optimizer):
    r"""SGD with steps of a given length along an average of gradients.

    :math:`m_k = \beta m_{k-1} + (1 - \beta) g_k` and
    :math:`x_{k+1} = x_k - \gamma\, m_k / |m_k|`, with the norm over the parameters of all
    groups. The average starts from the first gradient.

    After a step ``group["step_size"]`` is :math:`\gamma / |m_k|`.

    Parameters
    ----------
    params : iterable
        Parameters or groups of them, as for `torch.optim.SGD`.
    lr : float
        Length :math:`\gamma` of a step. If groups have different lengths, each scales its
        own part of the normalised momentum.
    beta : float, default: 0.9
        Weight of earlier gradients; 0 for normalised SGD.

    Raises
    ------
    ValueError
        If `lr` is negative or `beta` is not in [0, 1).
    """

    def __init__(self, params: Iterable[Any], lr: float, beta: float = 0.9) -> None:
        check_at_least("lr", lr, 0)
        if not 0 <= beta < 1:
            raise ValueError(f"beta: expected at least 0 and less than 1, got {beta}.")
        super().__init__(params, {"lr": lr, "beta": beta, "step_size": float("nan")})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step.

        Parameters
        ----------
        closure : None
            Not supported; must be None.
        """
        check_no_closure(closure, "NormalizedSGD")
        moving = [
            (group, [p for p in group["params"] if p.grad is not None])
            for group in self.param_groups
        ]
        momenta: dict[Tensor, Tensor] = {}
        for group, parameters in moving:
            for p in parameters:
                before = self.state[p].get("momentum", p.grad)
                momenta[p] = updated_momentum(p.grad, before, group["beta"])
                self.state[p]["momentum"] = momenta[p]
        momentum_norm = norm(momenta.values())
        for group, parameters in moving:
            group["step_size"] = normalized_step_size(momentum_norm, group["lr"])
            for p in parameters:
                subtract_scaled(p, momenta[p], group["step_size"])
