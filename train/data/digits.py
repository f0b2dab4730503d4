"""The handwritten digits in scikit-learn: 1,797 images of 8 x 8 pixels.

E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998. DOI 10.24432/C50P49.
"""

from typing import Final

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

N_TRAIN: Final = 1437
"""Number of training images, the first four fifths."""

N_STANDARDIZED: Final = 500
"""Number of images in `standardized_digits`, few enough for full-batch gradient descent."""


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return training and test images in [0, 1], shape (1, 8, 8), with their labels."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    labels = torch.from_numpy(bunch.target).long()
    return (
        TensorDataset(images[:N_TRAIN], labels[:N_TRAIN]),
        TensorDataset(images[N_TRAIN:], labels[N_TRAIN:]),
    )


def standardized_digits() -> TensorDataset:
    """Return the first `N_STANDARDIZED` training images with standardized pixels."""
    # Similarly, Cohen et al. (arXiv 2103.00065) take the first 5,000 images of CIFAR-10. Mean
    # and deviation are those of each pixel over the returned images; constant pixels become 0.
    images, labels = (tensor[:N_STANDARDIZED] for tensor in digits()[0].tensors)
    std = images.std(0, correction=0)
    std[std == 0] = 1
    return TensorDataset((images - images.mean(0)) / std, labels)
