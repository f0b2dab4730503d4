"""CIFAR-100: 60,000 colour images of 32 x 32 pixels in a hundred classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The images are
not augmented, so that the loss of a batch can be computed again with other parameters.
"""

from typing import Final, Literal

import torch

from train.data import Splits
from train.data.cifar import SIZE, Cifar, without_augmentation
from train.data.hub import Source
from train.data.images import enlarged_digits

CIFAR100: Final = Cifar(
    source=Source(
        title="CIFAR-100",
        repository="uoft-cs/cifar100",
        config=None,
        columns=("img", "fine_label"),
        files="its train-*.parquet and test-*.parquet files or cifar-100-python",
    ),
    image="img",
    label="fine_label",
    n_classes=100,
    folder="cifar-100-python",
    files={"train": ("train",), "test": ("test",)},
    labels=b"fine_labels",
    mean=torch.tensor([0.5071, 0.4865, 0.4409]),
    std=torch.tensor([0.2673, 0.2564, 0.2762]),
)


def cifar100(data: Literal["true", "embedded"], directory: str | None) -> Splits:
    """Load CIFAR-100, or digits of only ten classes as a stand-in."""
    if data == "embedded":
        return Splits(*enlarged_digits(SIZE), CIFAR100.n_classes)
    # The test images are the validation data.
    train, test = (
        without_augmentation(CIFAR100, split, directory) for split in ("train", "test")
    )
    return Splits(train, test, CIFAR100.n_classes)
