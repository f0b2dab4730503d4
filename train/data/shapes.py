"""Generated images with a class for every pixel, a stand-in for segmentation data."""

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

SIZE = 32
N_SHAPES = 4


def shapes(n: int, seed: int) -> TensorDataset:
    """Draw n noisy images of coloured shapes, float32 (3, 32, 32), and classes of pixels."""
    # The classes, int64 (32, 32), are 0 for the background, and 1 to 5 for boxes, discs,
    # diamonds, crosses and rings. Colours are independent of the class.
    generator = torch.Generator().manual_seed(seed)
    images = torch.empty(n, 3, SIZE, SIZE)
    classes = torch.zeros(n, SIZE, SIZE, dtype=torch.int64)
    for image, target in zip(images, classes, strict=True):
        colours = torch.rand(N_SHAPES + 1, 3, generator=generator)
        image[:] = colours[0, :, None, None]
        for colour in colours[1:]:
            kind = int(torch.randint(5, (), generator=generator))
            inside = _inside(kind, torch.rand(3, generator=generator))
            image[:, inside] = colour[:, None]
            target[inside] = kind + 1
    images += 0.05 * torch.randn(images.shape, generator=generator)
    return TensorDataset(images, classes)


def _inside(kind: int, position: Tensor) -> Tensor:
    """Return the mask of the pixels that a shape covers, bool (32, 32)."""
    # `position` is y, x and the size, each from 0 to 1.
    size = float(4 + 6 * position[2])
    axis = torch.arange(SIZE) + 0.5
    y = axis[:, None] - SIZE * float(position[0])
    x = axis[None, :] - SIZE * float(position[1])
    largest, radius = torch.maximum(x.abs(), y.abs()), (x**2 + y**2).sqrt()
    smallest = torch.minimum(x.abs(), y.abs())
    return [
        largest < size,
        radius < size,
        x.abs() + y.abs() < size,
        (largest < size) & (smallest < size / 3),
        (radius < size) & (radius > size / 2),
    ][kind]
