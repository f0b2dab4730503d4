"""ResNet-9: eight convolutions, two shortcuts and one linear layer.

D. Page, "How to Train Your ResNet", myrtle.ai, 2018, in the form that most tutorials use:
convolutions with biases, and max pooling before the linear layer. R. Islamov et al., "Loss
Landscape Characterization of Neural Networks without Over-Parametrization", NeurIPS 2024,
train a ResNet-9 on CIFAR-100; we assume that they mean this network.
"""

from torch import Tensor, nn


def _convolution(n_in: int, n_out: int) -> list[nn.Module]:
    return [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]


class Residual(nn.Module):
    """Two convolutions with a shortcut around them."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_convolution(n, n), *_convolution(n, n))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n, H, W) to the same shape."""
        y: Tensor = self.branch(x) + x
        return y


def resnet9(n_classes: int) -> nn.Sequential:
    """Return ResNet-9 for 32 x 32 colour images: 6,621,540 parameters for 100 classes."""
    return nn.Sequential(
        *_convolution(3, 64),
        *_convolution(64, 128),
        nn.MaxPool2d(2),
        Residual(128),
        *_convolution(128, 256),
        nn.MaxPool2d(2),
        *_convolution(256, 512),
        nn.MaxPool2d(2),
        Residual(512),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(512, n_classes),
    )
