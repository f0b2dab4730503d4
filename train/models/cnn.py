"""Network of two convolutions and one linear layer.

The network is that of R. Islamov et al., "Loss Landscape Characterization of Neural Networks
without Over-Parametrization", NeurIPS 2024, who vary the channels of the second layer from 32
to 2048. The 32 channels of the first layer, kernel sizes and max pooling are our own choices.
"""

from typing import Final

from torch import nn

FIRST_LAYER_CHANNELS: Final = 32


def cnn(n_in: int, size: int, n_classes: int, *, width: int) -> nn.Sequential:
    """Return a network that maps images (N, n_in, size, size) to logits (N, n_classes)."""
    # `size` must be a multiple of 4, because each max pooling halves it.
    return nn.Sequential(
        nn.Conv2d(n_in, FIRST_LAYER_CHANNELS, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(FIRST_LAYER_CHANNELS, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(width * (size // 4) ** 2, n_classes),
    )
