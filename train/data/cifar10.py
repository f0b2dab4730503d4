"""CIFAR-10: 60,000 colour images of 32 x 32 pixels in ten classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. `cifar10` splits
and augments the images as in the published code of "No Wrong Turns", arXiv 2306.11922: four
fifths of the training images are used for training and one fifth for validation; all images
are cropped at random, but not flipped.
"""

from functools import partial
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from train.data import Splits
from train.data.cifar import SIZE, Cifar, images_and_labels, without_augmentation
from train.data.hub import Source
from train.data.images import Images, enlarged_digits, normalized, random_crop

N_CLASSES: Final = 10

MEAN: Final = torch.tensor([0.4914, 0.4822, 0.4465])
STD: Final = torch.tensor([0.2470, 0.2435, 0.2616])
"""Mean and standard deviation of the channels of the training images."""

CIFAR10: Final = Cifar(
    source=Source(
        title="CIFAR-10",
        repository="uoft-cs/cifar10",
        config=None,
        columns=("img", "label"),
        files="its train-*.parquet files or cifar-10-batches-py",
    ),
    image="img",
    label="label",
    n_classes=N_CLASSES,
    folder="cifar-10-batches-py",
    files={
        "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test": ("test_batch",),
    },
    labels=b"labels",
    mean=MEAN,
    std=STD,
)


def cifar10(data: Literal["true", "embedded"], directory: str | None) -> Splits:
    """Load randomly cropped CIFAR-10 images (3, 32, 32), or digits as a stand-in."""
    if data == "embedded":
        return _digits()
    images = Images(*images_and_labels(CIFAR10, "train", directory), _augmented)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    n_train = len(images) * 4 // 5
    subset = partial(Subset[Any], images)
    train: Dataset[Any] = subset(order[:n_train].tolist())
    return Splits(train, subset(order[n_train:].tolist()), N_CLASSES)


def whole_cifar10(data: Literal["true", "embedded"], directory: str | None) -> Splits:
    """Load all of CIFAR-10 without augmentation, or digits as a stand-in."""
    if data == "embedded":
        return _digits()
    # The test images are the validation data.
    train, test = (
        without_augmentation(CIFAR10, split, directory) for split in ("train", "test")
    )
    return Splits(train, test, N_CLASSES)


def _digits() -> Splits:
    return Splits(*enlarged_digits(SIZE), N_CLASSES)


def _augmented(image: Tensor) -> Tensor:
    return normalized(random_crop(image, padding=4), MEAN, STD)
