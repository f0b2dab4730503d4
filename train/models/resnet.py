"""Residual networks of basic blocks for small images.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition",
CVPR 2016. arXiv 1512.03385.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation around a shortcut.

    Parameters
    ----------
    n_in, n_out : int
        Channels.
    stride : int
        Of the first convolution, and of the shortcut.
    """

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
    """A 3 x 3 stem, stages of basic blocks, average pooling and one linear layer.

    Parameters
    ----------
    n_in : int
        Channels of the images.
    widths : list of int
        Channels of each stage.
    strides : list of int
        Stride of the first block of each stage.
    n_blocks : int
        Blocks in a stage.
    n_classes : int
        Number of outputs.
    """

    def __init__(
        self,
        n_in: int,
        widths: list[int],
        strides: list[int],
        n_blocks: int,
        n_classes: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(n_in, widths[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        blocks, n = [], widths[0]
        for width, stride in zip(widths, strides, strict=True):
            for block in range(n_blocks):
                blocks.append(BasicBlock(n, width, stride if block == 0 else 1))
                n = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(n, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, n_in, H, W) to logits (N, n_classes)."""
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def digits_resnet(width: int = 1, n_blocks: int = 1) -> ResNet:
    """Blocks of 32, 64 and 128 channels for 8 x 8 digits: 308,074 parameters.

    Parameters
    ----------
    width : int, default: 1
        Factor of the channels.
    n_blocks : int, default: 1
        Blocks of each kind.

    Returns
    -------
    ResNet
        For images with one channel, in ten classes.
    """
    widths = [width * channels for channels in (32, 64, 128)]
    # The images are so small that only the last kind halves them.
    return ResNet(1, widths, [1, 1, 2], n_blocks=n_blocks, n_classes=10)


def cifar_resnet18(width: int = 1) -> ResNet:
    """ResNet-18 for 32 x 32 images in ten classes.

    Parameters
    ----------
    width : int, default: 1
        Factor on the channels of every stage and of the stem, which are 64, 128, 256
        and 512 at 1. It is at least 1.

    Returns
    -------
    ResNet
        Of 11,173,962 parameters at width 1, of 44,662,922 at width 2.

    Raises
    ------
    ValueError
        If the width is less than 1.
    """
    if width < 1:
        raise ValueError(f"The width is {width}; it must be a whole number from 1.")
    widths = [width * n for n in (64, 128, 256, 512)]
    return ResNet(3, widths, [1, 2, 2, 2], n_blocks=2, n_classes=10)
