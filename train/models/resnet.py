"""Residual networks of basic blocks for small images.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition",
CVPR 2016. arXiv 1512.03385.
"""

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F

CIFAR_CHANNELS: Final = (64, 128, 256, 512)
DIGITS_CHANNELS: Final = (32, 64, 128)
"""Channels of the stages at width 1."""


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, and a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_in, H, W) to (N, n_out, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3 x 3 stem, stages of basic blocks, average pooling and one linear layer."""

    def __init__(
        self,
        n_in: int,
        widths: list[int],
        strides: list[int],
        n_blocks: Sequence[int],
        n_classes: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(n_in, widths[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        blocks, n = [], widths[0]
        for width, stride, length in zip(widths, strides, n_blocks, strict=True):
            for block in range(length):
                blocks.append(BasicBlock(n, width, stride if block == 0 else 1))
                n = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(n, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, n_in, H, W) to logits (N, n_classes)."""
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def digits_resnet(width: int = 1, n_blocks: int = 1) -> ResNet:
    """Return a ResNet for 8 x 8 digits, with 308,074 parameters by default."""
    widths = [width * n for n in DIGITS_CHANNELS]
    # The images are so small that only the last stage halves their size.
    return ResNet(1, widths, [1, 1, 2], n_blocks=[n_blocks] * 3, n_classes=10)


def cifar_resnet18(width: int = 1, *, n_classes: int = 10) -> ResNet:
    """Return ResNet-18 for 32 x 32 images: 11,173,962 parameters at width 1."""
    return _cifar_resnet([2, 2, 2, 2], width, n_classes)


def cifar_resnet34(*, n_classes: int = 10) -> ResNet:
    """Return ResNet-34 for 32 x 32 images: 21,282,122 parameters with ten classes."""
    return _cifar_resnet([3, 4, 6, 3], 1, n_classes)


def _cifar_resnet(n_blocks: Sequence[int], width: int, n_classes: int) -> ResNet:
    if width < 1:
        raise ValueError(f"The width is {width}; it must be at least 1.")
    widths = [width * n for n in CIFAR_CHANNELS]
    return ResNet(3, widths, [1, 2, 2, 2], n_blocks=n_blocks, n_classes=n_classes)
