"""Residual networks for 224 x 224 images in a thousand classes.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition",
CVPR 2016. arXiv 1512.03385, table 1. As in torchvision's networks of the same names, the
3 x 3 convolution of a bottleneck has the stride, and the initial weights of convolutions
follow Kaiming's normal distribution.
"""

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F

from train.models.resnet import BasicBlock

STEM_CHANNELS: Final = 64
"""Channels of the stem at width 1."""


class Bottleneck(nn.Module):
    """Convolutions of 1 x 1, 3 x 3 and 1 x 1, with n_out / 4 channels between them."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        n = n_out // 4
        self.conv1 = nn.Conv2d(n_in, n, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n)
        self.conv2 = nn.Conv2d(n, n, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n)
        self.conv3 = nn.Conv2d(n, n_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_in, H, W) to (N, n_out, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ImageNetResNet(nn.Module):
    """A 7 x 7 stem with max pooling, four stages, average pooling and one linear layer."""

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        n_blocks: Sequence[int],
        widths: Sequence[int],
        n_stem: int,
        n_classes: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, n_stem, 7, 2, 3, bias=False),
            nn.BatchNorm2d(n_stem),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        blocks, n = [], n_stem
        for stage, (length, width) in enumerate(zip(n_blocks, widths, strict=True)):
            for i in range(length):
                blocks.append(block(n, width, 2 if stage > 0 and i == 0 else 1))
                n = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(n, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu"
                )

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, n_classes)."""
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def imagenet_resnet18(width: float = 1, *, n_classes: int = 1000) -> ImageNetResNet:
    """Return ResNet-18: 11,689,512 parameters at width 1. `width` scales all channels."""
    return _imagenet_resnet(BasicBlock, (2, 2, 2, 2), width, n_classes)


def imagenet_resnet50(width: float = 1, *, n_classes: int = 1000) -> ImageNetResNet:
    """Return ResNet-50: 25,557,032 parameters at width 1. `width` scales all channels."""
    return _imagenet_resnet(Bottleneck, (3, 4, 6, 3), width, n_classes)


def imagenet_resnet152(width: float = 1, *, n_classes: int = 1000) -> ImageNetResNet:
    """Return ResNet-152: 60,192,808 parameters at width 1. `width` scales all channels."""
    return _imagenet_resnet(Bottleneck, (3, 8, 36, 3), width, n_classes)


def _imagenet_resnet(
    block: type[BasicBlock | Bottleneck],
    n_blocks: Sequence[int],
    width: float,
    n_classes: int,
) -> ImageNetResNet:
    """Return a network of the given blocks, with all channels multiplied by `width`."""
    n_stem = round(STEM_CHANNELS * width)
    if n_stem < 1 or n_stem != STEM_CHANNELS * width:
        raise ValueError(
            f"The width is {width}; it must be a positive multiple of 1/{STEM_CHANNELS}, "
            "so that the stem has a whole number of channels."
        )
    expansion = 4 if block is Bottleneck else 1
    widths = [expansion * n_stem * 2**stage for stage in range(4)]
    return ImageNetResNet(block, n_blocks, widths, n_stem, n_classes)
