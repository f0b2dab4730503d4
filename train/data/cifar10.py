"""CIFAR-10: 60,000 colour images of 32 x 32 pixels in ten classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Split and
augmentation of `cifar10` are those of the published code of "No Wrong Turns", arXiv
2306.11922: four fifths of the training images are trained on, the others are for validation,
and both are cropped at random, without flips.
"""

from functools import partial
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from train.data import Splits
from train.data.cifar import SIZE, Cifar, as_they_are, images_and_labels
from train.data.hub import Source
from train.data.images import Images, digits_as_photographs, normalized, random_crop

N_CLASSES: Final = 10

MEAN: Final = torch.tensor([0.4914, 0.4822, 0.4465])
STD: Final = torch.tensor([0.2470, 0.2435, 0.2616])
"""Of the channels of the training images."""

CIFAR10: Final = Cifar(
    source=Source(
        title="CIFAR-10",
        repository="uoft-cs/cifar10",
        config=None,
        columns=("img", "label"),
        files="its train-*.parquet, or cifar-10-batches-py",
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
    """Load CIFAR-10, or digits in its place.

    Parameters
    ----------
    data : {"true", "embedded"}
        Which of them.
    directory : str or None
        See `train.data.cifar.images_and_labels`.

    Returns
    -------
    Splits
        Images (3, 32, 32), ten classes.
    """
    if data == "embedded":
        return _digits()
    whole = Images(*images_and_labels(CIFAR10, "train", directory), _changed)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))
    n_train = len(whole) * 4 // 5
    part = partial(Subset[Any], whole)
    train: Dataset[Any] = part(order[:n_train].tolist())
    return Splits(train, part(order[n_train:].tolist()), N_CLASSES)


def whole_cifar10(data: Literal["true", "embedded"], directory: str | None) -> Splits:
    """Load all training images of CIFAR-10 and its test images, without augmentation.

    Parameters
    ----------
    data : {"true", "embedded"}
        Which of them: CIFAR-10, or digits in its place.
    directory : str or None
        See `train.data.cifar.images_and_labels`.

    Returns
    -------
    Splits
        Images (3, 32, 32), ten classes; the test images as validation data.
    """
    if data == "embedded":
        return _digits()
    train, test = (
        as_they_are(CIFAR10, split, directory) for split in ("train", "test")
    )
    return Splits(train, test, N_CLASSES)


def _digits() -> Splits:
    return Splits(*digits_as_photographs(SIZE), N_CLASSES)


def _changed(image: Tensor) -> Tensor:
    return normalized(random_crop(image, padding=4), MEAN, STD)
