"""What outputs are compared with, and how well they do."""

from collections.abc import Callable
from typing import Final, NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Task(NamedTuple):
    """A kind of problem.

    Attributes
    ----------
    loss : callable
        Takes outputs and targets, returns their mean loss.
    scores : callable
        Takes outputs, targets and the loss, returns numbers to log.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    scores: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]


def _accuracy(outputs: Tensor, targets: Tensor, _loss: Tensor) -> dict[str, Tensor]:
    return {"accuracy": (outputs.argmax(1) == targets).float().mean()}


def _half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    wanted = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
    return 0.5 * (outputs - wanted).square().sum(1).mean()


def _token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def _perplexity(_outputs: Tensor, _targets: Tensor, loss: Tensor) -> dict[str, Tensor]:
    return {"perplexity": loss.detach().exp()}


def _no_scores(_outputs: Tensor, _targets: Tensor, _loss: Tensor) -> dict[str, Tensor]:
    return {}


CLASSIFICATION: Final = Task(F.cross_entropy, _accuracy)
"""Of images, or of their pixels: outputs (N, class, ...), targets (N, ...)."""

SQUARES: Final = Task(_half_squared_error, _accuracy)
"""Classes as vectors of zeros and a one: half the squared distance of outputs (N, class) to
them, as Cohen et al. (arXiv 2103.00065) measure it."""

LANGUAGE: Final = Task(_token_loss, _perplexity)
"""The next token: outputs (N, context, token), targets (N, context)."""


def minimization(loss: Callable[[Tensor, Tensor], Tensor]) -> Task:
    """Return the task of making a loss small, without further scores."""
    return Task(loss, _no_scores)
