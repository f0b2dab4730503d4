"""SegNet: an encoder and a mirrored decoder that classify every pixel.

V. Badrinarayanan, A. Kendall, R. Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder
Architecture for Image Segmentation", IEEE TPAMI 39, 2017, arXiv 1511.00561.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F

VGG_STAGES: Final = ([64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3)
"""Channels of every convolution of VGG16, by stage."""


class SegNet(nn.Module):
    """An encoder whose stages halve the image, and a mirrored decoder that doubles it."""

    def __init__(
        self, n_in: int, stages: Sequence[Sequence[int]], n_classes: int
    ) -> None:
        super().__init__()
        before = [n_in, *(stage[-1] for stage in stages[:-1])]
        paths = [[n, *stage] for n, stage in zip(before, stages, strict=True)]
        self.encoder = nn.ModuleList(_convolve(path) for path in paths)
        # The head replaces the decoder's last convolution, and is not normalised.
        back = [path[::-1] for path in reversed(paths)]
        self.decoder = nn.ModuleList(
            _convolve(path) for path in [*back[:-1], back[-1][:-1]]
        )
        self.head = nn.Conv2d(stages[0][0], n_classes, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, n_in, H, W) to logits (N, n_classes, H, W)."""
        factor = 2 ** len(self.encoder)
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"The images are {x.shape[2]} x {x.shape[3]}; both sides must be "
                f"multiples of {factor}: crop or pad them."
            )
        indices = []
        for stage in self.encoder:
            x, index = F.max_pool2d(stage(x), 2, return_indices=True)
            indices.append(index)
        # Maxima return to the pixels they came from; all other pixels are zero.
        for stage in self.decoder:
            x = stage(F.max_unpool2d(x, indices.pop(), [2, 2]))
        logits: Tensor = self.head(x)
        return logits


def segnet(n_classes: int = 6, *, n_in: int = 3) -> SegNet:
    """Return a SegNet of VGG16's convolutions and their mirror: 29,446,470 parameters."""
    # In the network that "No Wrong Turns" (Guille-Escuret et al., 2023, arXiv 2306.11922)
    # trains on the Vaihingen images, normalisation comes after ReLU, whereas it comes before
    # ReLU in Badrinarayanan et al.
    return SegNet(n_in, VGG_STAGES, n_classes)


def _convolve(widths: Sequence[int]) -> nn.Sequential:
    """Return 3 x 3 convolutions of the given widths, each with ReLU and normalisation."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Conv2d(n_in, n_out, 3, 1, 1), nn.ReLU(), nn.BatchNorm2d(n_out)]
    return nn.Sequential(*layers)
