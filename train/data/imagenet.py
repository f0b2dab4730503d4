"""ImageNet-1K: 1.28 million photographs in a thousand classes.

J. Deng et al., "ImageNet: A Large-Scale Hierarchical Image Database", CVPR 2009. Training
images are cropped to a random part as by torchvision's RandomResizedCrop, scaled to 224 x 224
pixels and flipped at random; those for validation are scaled to 256 and cropped in the middle.
"""

import math
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from train.data import Splits
from train.data.hub import Source, labels_of, load_tables, picture, split_of
from train.data.images import digits_as_photographs, normalized

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
"""Of the channels, as torchvision's examples have them."""

AREAS: Final = (0.08, 1.0)
RATIOS: Final = (3 / 4, 4 / 3)
"""Share of an image that a random part has, and its width over height."""

ATTEMPTS: Final = 10

BILINEAR: Final = 2
"""Pillow's number of this kind of resampling; Pillow is of an extra."""


def imagenet(data: Literal["true", "embedded"], directory: str | None) -> Splits:
    """Load ImageNet-1K, or digits in its place.

    Parameters
    ----------
    data : {"true", "embedded"}
        Which of them.
    directory : str or None
        See `train.data.hub.load_tables`.

    Returns
    -------
    Splits
        Images (3, 224, 224); digits have 32 x 32 pixels. A thousand classes, of which
        the digits use ten.
    """
    if data == "embedded":
        return Splits(*digits_as_photographs(EMBEDDED_SIZE), N_CLASSES)
    tables = load_tables(SOURCE, directory)
    train, validation = (
        split_of(tables, name, SOURCE.title) for name in ("train", "validation")
    )
    return Splits(
        Photographs(train, is_training=True),
        Photographs(validation, is_training=False),
        N_CLASSES,
    )


class Photographs(Dataset[Any]):
    """Photographs that are decoded when they are asked for.

    Parameters
    ----------
    table : datasets.Dataset
        Columns ``image`` and ``label``.
    is_training : bool
        Whether parts are drawn at random.
    """

    def __init__(self, table: Any, *, is_training: bool) -> None:
        self._table, self._is_training = table, is_training
        self._labels = labels_of(table, "label", N_CLASSES, SOURCE.title)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = picture(self._table, index, "image", SOURCE.title)
        image = _random_part(image) if self._is_training else _middle(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        if self._is_training and torch.rand(()) < 0.5:
            pixels = pixels.flip(-1)
        return normalized(pixels, MEAN, STD), self._labels[index]


def _random_part(image: Any) -> Any:
    """Draw a share of the area and the logarithm of a ratio, and scale such a part."""
    width, height = image.size
    for _ in range(ATTEMPTS):
        area = width * height * float(torch.empty(()).uniform_(*AREAS))
        low, high = map(math.log, RATIOS)
        ratio = math.exp(float(torch.empty(()).uniform_(low, high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(torch.randint(0, width - w + 1, ()))
            top = int(torch.randint(0, height - h + 1, ()))
            return _scaled(image, left, top, w, h)
    # Too long or too high: the largest part of a ratio that is allowed, in the middle.
    w, h = min(width, round(height * RATIOS[1])), min(height, round(width / RATIOS[0]))
    return _scaled(image, (width - w) // 2, (height - h) // 2, w, h)


def _middle(image: Any) -> Any:
    """Scale the shorter side to 256 pixels and cut 224 x 224 out of the middle."""
    width, height = image.size
    side = min(width, height) * SIZE / 256
    left, top = (width - side) / 2, (height - side) / 2
    return _scaled(image, left, top, side, side)


def _scaled(image: Any, left: float, top: float, width: float, height: float) -> Any:
    """Scale a part of an image to 224 x 224 pixels."""
    box = (left, top, left + width, top + height)
    return image.resize((SIZE, SIZE), BILINEAR, box)
