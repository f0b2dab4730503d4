"""The optical handwritten digits that scikit-learn carries: 1797 images of 8 x 8.

E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998. DOI 10.24432/C50P49.
"""

from typing import Final

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

N_TRAIN: Final = 1437
"""The first images, four fifths, are for training."""

N_FEW: Final = 500
"""Images that are few enough for the gradient of all of them in every step."""


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return training and test images in [0, 1], shape (1, 8, 8), with their labels."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    labels = torch.from_numpy(bunch.target).long()
    return (
        TensorDataset(images[:N_TRAIN], labels[:N_TRAIN]),
        TensorDataset(images[N_TRAIN:], labels[N_TRAIN:]),
    )


def few_standardized_digits() -> TensorDataset:
    """Return the first `N_FEW` training images, every pixel less its mean, over its deviation.

    As Cohen et al. (arXiv 2103.00065) take the first 5,000 images of CIFAR-10.

    Returns
    -------
    TensorDataset
        Images of shape (1, 8, 8) with their labels. Mean and standard deviation are those of
        these images; pixels that are the same in all of them are 0.
    """
    images, labels = (tensor[:N_FEW] for tensor in digits()[0].tensors)
    std = images.std(0, correction=0)
    std[std == 0] = 1
    return TensorDataset((images - images.mean(0)) / std, labels)
