"""U-Net: an encoder and a decoder, joined by skip connections, that classify every pixel.

O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", MICCAI 2015, arXiv 1505.04597. Unlike the published network, this one has padded
convolutions and batch normalisation, and half as many channels.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS: Final = (32, 64, 128, 256, 512)
"""Channels of each level, starting with the finest."""


class UNet(nn.Module):
    """An encoder that halves the image at each level, and a decoder that doubles it again."""

    def __init__(self, n_in: int, widths: Sequence[int], n_classes: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            _convolve_twice(*n) for n in pairwise([n_in, *widths])
        )
        steps = list(pairwise(reversed(widths)))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(*n, 2, 2) for n in steps)
        self.up = nn.ModuleList(_convolve_twice(2 * n, n) for _, n in steps)
        self.head = nn.Conv2d(widths[0], n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, n_in, H, W) to logits (N, n_classes, H, W)."""
        factor = 2 ** len(self.up)
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"The images are {x.shape[2]} x {x.shape[3]}; both sides must be "
                f"multiples of {factor}: crop or pad them."
            )
        x, copies = self.down[0](x), []
        for level in list(self.down)[1:]:
            copies.append(x)
            x = level(F.max_pool2d(x, 2))
        for enlarge, level in zip(self.enlarge, self.up, strict=True):
            x = level(torch.cat([enlarge(x), copies.pop()], dim=1))
        logits: Tensor = self.head(x)
        return logits


def unet(n_classes: int = 6, *, n_in: int = 3) -> UNet:
    """Return a U-Net with 32, 64, 128, 256 and 512 channels: 7,763,206 parameters."""
    # "No Wrong Turns" (Guille-Escuret et al., 2023, arXiv 2306.11922) uses these widths for
    # the Vaihingen images. Convolutions before a normalisation have no bias.
    return UNet(n_in, CHANNELS, n_classes)


def _convolve_twice(n_in: int, n_out: int) -> nn.Sequential:
    """Return two 3 x 3 convolutions, each with normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, 1, 1, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(),
        nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(),
    )
