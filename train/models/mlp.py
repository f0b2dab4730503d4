"""Fully connected networks."""

from collections.abc import Callable
from itertools import pairwise
from typing import Final

from torch import nn

MEDIUM_WIDTH: Final = 4096


def mlp(
    widths: list[int], activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Return linear layers of the given widths with activations between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def medium_mlp() -> nn.Sequential:
    """Return an MLP with three hidden layers of width 4096: 46,190,602 parameters."""
    # The network that "No Wrong Turns" (Guille-Escuret et al., 2023, arXiv 2306.11922)
    # trains on CIFAR-10. The published code applies log_softmax to the outputs, and cross
    # entropy applies it again. The second log_softmax changes nothing, so these logits have
    # the same loss and gradients.
    return mlp([3072, MEDIUM_WIDTH, MEDIUM_WIDTH, MEDIUM_WIDTH, 10])
