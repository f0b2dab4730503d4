"""Losses and scores of workloads."""

from collections.abc import Callable
from typing import Final, NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Task(NamedTuple):
    """Loss and scores of a kind of problem."""

    loss: Callable[[Tensor, Tensor], Tensor]  # mean loss, from outputs and targets
    scores: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
    """Returns scores to log, computed from outputs, targets and the loss."""


def _accuracy(outputs: Tensor, targets: Tensor, _loss: Tensor) -> dict[str, Tensor]:
    return {"accuracy": (outputs.argmax(1) == targets).float().mean()}


def _half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    expected = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
    return 0.5 * (outputs - expected).square().sum(1).mean()


def _token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def _perplexity(_outputs: Tensor, _targets: Tensor, loss: Tensor) -> dict[str, Tensor]:
    return {"perplexity": loss.detach().exp()}


def _no_scores(_outputs: Tensor, _targets: Tensor, _loss: Tensor) -> dict[str, Tensor]:
    return {}


CLASSIFICATION: Final = Task(F.cross_entropy, _accuracy)
"""Predict classes of images or pixels: outputs (N, class, ...), targets (N, ...)."""

SQUARED_ERROR: Final = Task(_half_squared_error, _accuracy)
"""Minimize half of the squared distance between outputs (N, class) and one-hot targets, as in
Cohen et al. (arXiv 2103.00065)."""

LANGUAGE: Final = Task(_token_loss, _perplexity)
"""Predict the next token: outputs (N, context, token), targets (N, context)."""


def minimization(loss: Callable[[Tensor, Tensor], Tensor]) -> Task:
    """Return the task of minimizing a loss, without scores."""
    return Task(loss, _no_scores)
