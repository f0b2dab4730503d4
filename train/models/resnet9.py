"""ResNet-9: eight convolutions, two shortcuts and one linear layer.

D. Page, "How to Train Your ResNet", myrtle.ai, 2018, in the form in which it is taught
widely: convolutions with biases, and maxima before the linear layer. R. Islamov et al., "Loss
Landscape Characterization of Neural Networks without Over-Parametrization", NeurIPS 2024,
trains a ResNet-9 on CIFAR-100; that it is this one is our reading.
"""

from torch import Tensor, nn


def _convolution(n_in: int, n_out: int) -> list[nn.Module]:
    return [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]


class Residual(nn.Module):
    """Adds what two convolutions make of an input to it.

    Parameters
    ----------
    n : int
        Channels.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_convolution(n, n), *_convolution(n, n))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n, H, W) to the same shape."""
        y: Tensor = self.branch(x) + x
        return y


def resnet9(n_classes: int) -> nn.Sequential:
    """ResNet-9 for 32 x 32 colour images: 6,621,540 parameters for a hundred classes.

    Parameters
    ----------
    n_classes : int
        Number of outputs.

    Returns
    -------
    torch.nn.Sequential
        Maps images (N, 3, 32, 32) to logits (N, n_classes).
    """
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
