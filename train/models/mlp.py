"""Fully connected networks."""

from collections.abc import Callable
from itertools import pairwise

from torch import nn


def mlp(
    widths: list[int], activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Linear layers of the given widths, input first, with an activation between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def medium_mlp() -> nn.Sequential:
    """Widths 3072, 4096, 4096, 4096, 10 for 32 x 32 images: 46,190,602 parameters.

    The network that "No Wrong Turns" (Guille-Escuret et al., 2023, arXiv 2306.11922)
    trains on CIFAR-10. The published code ends in a logarithm of a softmax and trains
    it with the cross entropy, which takes that logarithm once more. Taking it twice is
    taking it once, so this one returns the logits and has the same loss and gradients.

    Returns
    -------
    torch.nn.Sequential
        Maps images (N, 3, 32, 32) to logits (N, 10).
    """
    return mlp([3072, 4096, 4096, 4096, 10])
