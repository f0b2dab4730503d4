"""Images in memory, with their normalisation and augmentation."""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from train.data.digits import digits


class Images(Dataset[Any]):
    """Images, uint8 (example, channel, height, width), transformed into model inputs."""

    def __init__(
        self, images: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor]
    ) -> None:
        self._images, self._labels, self._transform = images, labels, transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._transform(self._images[index].float() / 255), self._labels[index]


def random_crop(image: Tensor, padding: int) -> Tensor:
    """Pad an image (channel, height, width) with zeros, and crop it at random."""
    height, width = image.shape[-2:]
    padded = F.pad(image, [padding] * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2,)).tolist()
    return padded[:, top : top + height, left : left + width]


def normalized(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the mean of each channel, (channel,), and divide by the deviation."""
    return (image - mean[:, None, None]) / std[:, None, None]


N_COLOURS: Final = 3


def enlarged_digits(
    size: int, n_channels: int = N_COLOURS
) -> tuple[TensorDataset, TensorDataset]:
    """Return digits as images (n_channels, size, size), a stand-in for photographs."""
    # The images are float32 and centred, in ten classes; their channels are equal.
    parts = []
    for part in digits():
        images, labels = part.tensors
        large = F.interpolate(images, (size, size), mode="bilinear")
        parts.append(
            TensorDataset((large - 0.3).expand(-1, n_channels, -1, -1) / 0.35, labels)
        )
    return parts[0], parts[1]
