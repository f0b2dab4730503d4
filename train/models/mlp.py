"""Fully connected networks."""

from itertools import pairwise

from torch import nn


def mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers of the given widths, input first, with ReLU between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
