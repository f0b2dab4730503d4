"""Two convolutions and one linear layer."""

from typing import Final

from torch import nn

FIRST: Final = 32
"""Convolutions in the first layer."""


def cnn(n_in: int, size: int, n_classes: int, *, width: int) -> nn.Sequential:
    """Two layers of 3 x 3 convolutions, each halved by maxima, and a linear one.

    The network of R. Islamov et al., "Loss Landscape Characterization of Neural Networks
    without Over-Parametrization", NeurIPS 2024, has from 32 to 2048 convolutions in its
    second layer. The 32 of the first, the sizes and the maxima are our own.

    Parameters
    ----------
    n_in : int
        Channels of the images.
    size : int
        Their height and width, a multiple of 4.
    n_classes : int
        Number of outputs.
    width : int
        Convolutions in the second layer.

    Returns
    -------
    torch.nn.Sequential
        Maps images (N, n_in, size, size) to logits (N, n_classes).
    """
    return nn.Sequential(
        nn.Conv2d(n_in, FIRST, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(FIRST, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(width * (size // 4) ** 2, n_classes),
    )
