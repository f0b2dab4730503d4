"""CIFAR-10: 60,000 colour images of 32 x 32 pixels in ten classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Split and
augmentation are those of the published code of "No Wrong Turns", arXiv 2306.11922: four
fifths of the training images are trained on, the others are for validation, and both are
cropped at random, without flips.
"""

from functools import partial
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from train.data import Splits
from train.data.hub import Source, labels_of, load_tables, picture, split_of
from train.data.images import Images, digits_as_photographs, normalized, random_crop

SOURCE: Final = Source(
    title="CIFAR-10",
    repository="uoft-cs/cifar10",
    config=None,
    columns=("img", "label"),
    files="its train-*.parquet",
)
N_CLASSES: Final = 10
SIZE: Final = 32

MEAN: Final = torch.tensor([0.4914, 0.4822, 0.4465])
STD: Final = torch.tensor([0.2470, 0.2435, 0.2616])
"""Of the channels of the training images."""


def cifar10(data: Literal["true", "embedded"], directory: str | None) -> Splits:
    """Load CIFAR-10, or digits in its place.

    Parameters
    ----------
    data : {"true", "embedded"}
        Which of them.
    directory : str or None
        See `train.data.hub.load_tables`.

    Returns
    -------
    Splits
        Images (3, 32, 32), ten classes.
    """
    if data == "embedded":
        return Splits(*digits_as_photographs(SIZE), N_CLASSES)
    table = split_of(load_tables(SOURCE, directory), "train", SOURCE.title)
    labels = labels_of(table, "label", N_CLASSES, SOURCE.title)
    images = _stacked(table)
    whole = Images(images, labels, _changed)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))
    n_train = len(whole) * 4 // 5
    part = partial(Subset[Any], whole)
    train: Dataset[Any] = part(order[:n_train].tolist())
    return Splits(train, part(order[n_train:].tolist()), N_CLASSES)


def _stacked(table: Any) -> Tensor:
    """Decode all images, uint8 of shape (example, 3, 32, 32)."""
    images = np.empty((len(table), SIZE, SIZE, 3), np.uint8)
    for i in range(len(table)):
        image = picture(table, i, "img", SOURCE.title)
        if image.size != (SIZE, SIZE):
            raise ValueError(
                f"Image {i} of {SOURCE.title} has {image.size} pixels, expected "
                f"{(SIZE, SIZE)}."
            )
        images[i] = np.asarray(image)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _changed(image: Tensor) -> Tensor:
    return normalized(random_crop(image, padding=4), MEAN, STD)
