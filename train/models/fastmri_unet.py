"""U-Net that reconstructs images of magnetic resonance.

O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", MICCAI 2015, arXiv 1505.04597; in the form of J. Zbontar et al., "fastMRI: An
Open Dataset and Benchmarks for Accelerated MRI", 2018, arXiv 1811.08839, with 32 channels in
the first layer.
"""

import itertools
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS: Final = (32, 64, 128, 256, 512)


class FastMRIUNet(nn.Module):
    """An encoder that halves images, and a decoder with a shortcut at each size."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.down = nn.ModuleList(
            [
                _convolve_twice(1, channels[0]),
                *(_convolve_twice(*pair) for pair in pairs),
            ]
        )
        self.enlarge = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(n_below, n, 2, 2, bias=False),
                nn.InstanceNorm2d(n),
                nn.LeakyReLU(0.2),
            )
            for n, n_below in reversed(pairs)
        )
        self.up = nn.ModuleList(
            _convolve_twice(2 * n, n) for n in reversed(channels[:-1])
        )
        self.head = nn.Conv2d(channels[0], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 1, H, W) to images of the same shape; H and W divide by 16."""
        copies: list[Tensor] = []
        for level in list(self.down)[:-1]:
            images = level(images)
            copies.append(images)
            images = F.avg_pool2d(images, 2)
        images = self.down[-1](images)
        for enlarge, level in zip(self.enlarge, self.up, strict=True):
            images = level(torch.cat([enlarge(images), copies.pop()], 1))
        output: Tensor = self.head(images)
        return output


def _convolve_twice(n_in: int, n_out: int) -> nn.Sequential:
    """Return two 3 x 3 convolutions, each normalised within an image."""
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, padding=1, bias=False),
        nn.InstanceNorm2d(n_out),
        nn.LeakyReLU(0.2),
        nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
        nn.InstanceNorm2d(n_out),
        nn.LeakyReLU(0.2),
    )


def fastmri_unet() -> FastMRIUNet:
    """Return the U-Net of the fastMRI paper with 32 channels: 7,756,097 parameters."""
    return FastMRIUNet(CHANNELS)
