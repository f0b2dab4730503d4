"""ImageNet-1K: 1.28 million photographs in a thousand classes.

J. Deng et al., "ImageNet: A Large-Scale Hierarchical Image Database", CVPR 2009. Training
images are cropped at random as in torchvision's RandomResizedCrop, scaled to 224 x 224 pixels
and flipped at random. The shorter side of validation images is scaled to 256 pixels, and the
images are cropped at the centre.
"""

import math
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from train.data import Splits
from train.data.hub import Source, decode_image, get_split, load_tables, read_labels
from train.data.images import enlarged_digits, normalized

SOURCE: Final = Source(
    title="ImageNet-1K",
    repository="ILSVRC/imagenet-1k",
    config=None,
    columns=("image", "label"),
    files="train-*.parquet and validation-*.parquet, or train/ and validation/ with a "
    "directory for each class",
)
N_CLASSES: Final = 1000
SIZE: Final = 224
EMBEDDED_SIZE: Final = 32

MEAN: Final = torch.tensor([0.485, 0.456, 0.406])
STD: Final = torch.tensor([0.229, 0.224, 0.225])
"""Mean and standard deviation of the channels, from torchvision's examples."""

CROP_AREA_RANGE: Final = (0.08, 1.0)
CROP_RATIO_RANGE: Final = (3 / 4, 4 / 3)
"""Ranges for random crops: area as a fraction of the image, and width divided by height."""

MAX_CROP_ATTEMPTS: Final = 10

PILLOW_BILINEAR: Final = 2
"""Pillow's code for bilinear resampling, repeated because Pillow is an optional dependency."""


def imagenet(data: Literal["true", "embedded"], directory: str | None) -> Splits:
    """Load ImageNet-1K images (3, 224, 224), or digits of 32 x 32 pixels as a stand-in."""
    if data == "embedded":
        return Splits(*enlarged_digits(EMBEDDED_SIZE), N_CLASSES)
    tables = load_tables(SOURCE, directory)
    train, validation = (
        get_split(tables, name, SOURCE.title) for name in ("train", "validation")
    )
    return Splits(
        Photographs(train, is_training=True),
        Photographs(validation, is_training=False),
        N_CLASSES,
    )


class Photographs(Dataset[Any]):
    """Photographs that are decoded on access, and cropped at random for training."""

    def __init__(self, table: Any, *, is_training: bool) -> None:
        self._table, self._is_training = table, is_training
        self._labels = read_labels(table, "label", N_CLASSES, SOURCE.title)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = decode_image(self._table, index, "image", SOURCE.title)
        image = _random_crop(image) if self._is_training else _center_crop(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        if self._is_training and torch.rand(()) < 0.5:
            pixels = pixels.flip(-1)
        return normalized(pixels, MEAN, STD), self._labels[index]


def _random_crop(image: Any) -> Any:
    """Crop a random part with a uniform area and a log-uniform ratio, and resize it."""
    width, height = image.size
    for _ in range(MAX_CROP_ATTEMPTS):
        area = width * height * float(torch.empty(()).uniform_(*CROP_AREA_RANGE))
        low, high = map(math.log, CROP_RATIO_RANGE)
        ratio = math.exp(float(torch.empty(()).uniform_(low, high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(torch.randint(0, width - w + 1, ()))
            top = int(torch.randint(0, height - h + 1, ()))
            return _crop_and_resize(image, left, top, w, h)
    # The image is too wide or too tall: take the largest centred crop with an allowed ratio.
    low, high = CROP_RATIO_RANGE
    w, h = min(width, round(height * high)), min(height, round(width / low))
    return _crop_and_resize(image, (width - w) // 2, (height - h) // 2, w, h)


def _center_crop(image: Any) -> Any:
    """Scale the shorter side to 256 pixels and crop 224 x 224 at the centre."""
    width, height = image.size
    side = min(width, height) * SIZE / 256
    left, top = (width - side) / 2, (height - side) / 2
    return _crop_and_resize(image, left, top, side, side)


def _crop_and_resize(
    image: Any, left: float, top: float, width: float, height: float
) -> Any:
    """Resize a part of an image to 224 x 224 pixels."""
    box = (left, top, left + width, top + height)
    return image.resize((SIZE, SIZE), PILLOW_BILINEAR, box)
