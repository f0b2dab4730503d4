"""Normalised SGD with momentum.

A. Cutkosky, H. Mehta, "Momentum Improves Normalized SGD", ICML 2020. arXiv 2002.03305.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trajstore.optim.gradient_steps import (
    check_at_least,
    check_no_closure,
    norm,
    subtract_scaled,
)


def updated_momentum(gradient: Tensor, momentum: Tensor, beta: float) -> Tensor:
    """Return ``beta * momentum + (1 - beta) * gradient``."""
    return beta * momentum + (1 - beta) * gradient


def normalized_step_size(momentum_norm: Tensor, lr: float) -> Tensor:
    """Return ``lr / momentum_norm``, shape (), or 0 if the norm is 0."""
    return torch.where(momentum_norm > 0, lr / momentum_norm, 0.0)


class NormalizedSGD(Optimizer):
    r"""SGD with steps of a given length along an average of gradients.

    :math:`m_k = \beta m_{k-1} + (1 - \beta) g_k` and
    :math:`x_{k+1} = x_k - \gamma\, m_k / |m_k|`. The average starts from the first gradient,
    and its norm is over the parameters of all groups.

    After a step, ``group["step_size"]`` holds :math:`\gamma / |m_k|`.

    Parameters
    ----------
    params : iterable
        Parameters or parameter groups, as for `torch.optim.SGD`.
    lr : float
        Length :math:`\gamma` of a step. If groups have different lengths, each scales its
        own part of the normalised momentum.
    beta : float, default: 0.9
        Weight of the previous average; 0 for normalised SGD without momentum.

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
        groups = [
            (group, [p for p in group["params"] if p.grad is not None])
            for group in self.param_groups
        ]
        momenta: dict[Tensor, Tensor] = {}
        for group, parameters in groups:
            for p in parameters:
                before = self.state[p].get("momentum", p.grad)
                momenta[p] = updated_momentum(p.grad, before, group["beta"])
                self.state[p]["momentum"] = momenta[p]
        momentum_norm = norm(momenta.values())
        for group, parameters in groups:
            group["step_size"] = normalized_step_size(momentum_norm, group["lr"])
            for p in parameters:
                subtract_scaled(p, momenta[p], group["step_size"])
