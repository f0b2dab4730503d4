"""Images in memory, and what is done to them when they are looked at."""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from train.data.digits import digits


class Images(Dataset[Any]):
    """Images as bytes, with their labels.

    Parameters
    ----------
    images : torch.Tensor
        uint8, (example, channel, height, width).
    labels : torch.Tensor
        int64, (example,).
    change : callable
        Takes one image, float32 in [0, 1], and returns what a model gets.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, change: Callable[[Tensor], Tensor]
    ) -> None:
        self._images, self._labels, self._change = images, labels, change

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._change(self._images[index].float() / 255), self._labels[index]


def random_crop(image: Tensor, padding: int) -> Tensor:
    """Cut an image of the same size out of one with a black border, anywhere.

    Parameters
    ----------
    image : torch.Tensor
        Shape (channel, height, width).
    padding : int
        Width of the border.

    Returns
    -------
    torch.Tensor
        Of the same shape; torch's random stream chooses the place.
    """
    height, width = image.shape[-2:]
    padded = F.pad(image, [padding] * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2,)).tolist()
    return padded[:, top : top + height, left : left + width]


def normalized(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the mean of each channel, (channel,), and divide by its deviation."""
    return (image - mean[:, None, None]) / std[:, None, None]


RGB: Final = 3


def digits_as_photographs(
    size: int, n_channels: int = RGB
) -> tuple[TensorDataset, TensorDataset]:
    """Return digits as larger images, in colour, for what expects such: a stand-in.

    Parameters
    ----------
    size : int
        Height and width.
    n_channels : int, default: 3
        All alike.

    Returns
    -------
    train, validation : torch.utils.data.TensorDataset
        float32, shape (n_channels, size, size), centred, with ten classes.
    """
    parts = []
    for part in digits():
        images, labels = part.tensors
        large = F.interpolate(images, (size, size), mode="bilinear")
        parts.append(
            TensorDataset((large - 0.3).expand(-1, n_channels, -1, -1) / 0.35, labels)
        )
    return parts[0], parts[1]
