"""An encoder and its mirror image, which label each pixel.

V. Badrinarayanan, A. Kendall, R. Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder
Architecture for Image Segmentation", IEEE TPAMI 39, 2017, arXiv 1511.00561.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class SegNet(nn.Module):
    """Stages that each halve the image, and the same backwards.

    A stage's maxima go back to the pixels they came from when the image grows again;
    the other pixels are zero.

    Parameters
    ----------
    n_in : int
        Channels of the images.
    stages : sequence of sequences of int
        Channels that each convolution of each stage of the encoder puts out.
    n_classes : int
        Number of outputs at each pixel.
    """

    def __init__(
        self, n_in: int, stages: Sequence[Sequence[int]], n_classes: int
    ) -> None:
        super().__init__()
        before = [n_in, *(stage[-1] for stage in stages[:-1])]
        paths = [[n, *stage] for n, stage in zip(before, stages, strict=True)]
        self.encoder = nn.ModuleList(_convolve(path) for path in paths)
        # The last convolution of the mirror image has the classes' channels, and no
        # normalisation.
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
        places = []
        for stage in self.encoder:
            x, place = F.max_pool2d(stage(x), 2, return_indices=True)
            places.append(place)
        for stage in self.decoder:
            x = stage(F.max_unpool2d(x, places.pop(), [2, 2]))
        logits: Tensor = self.head(x)
        return logits


def segnet(n_classes: int = 6, *, n_in: int = 3) -> SegNet:
    """VGG16's thirteen convolutions and back: 29,446,470 parameters by default.

    As in the network that "No Wrong Turns" (Guille-Escuret et al., 2023, arXiv
    2306.11922) trains on the Vaihingen images, normalisation comes after ReLU, where
    Badrinarayanan et al. have it before.

    Parameters
    ----------
    n_classes : int, default: 6
        Number of outputs at each pixel.
    n_in : int, default: 3
        Channels of the images.

    Returns
    -------
    SegNet
        Maps images (N, n_in, H, W) to logits (N, n_classes, H, W), where H and W are
        multiples of 32.
    """
    stages = [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3]
    return SegNet(n_in, stages, n_classes)


def _convolve(widths: Sequence[int]) -> nn.Sequential:
    """Return 3 x 3 convolutions of these widths, each with ReLU and normalisation."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Conv2d(n_in, n_out, 3, 1, 1), nn.ReLU(), nn.BatchNorm2d(n_out)]
    return nn.Sequential(*layers)
