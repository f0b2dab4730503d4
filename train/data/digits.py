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


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return training and test images in [0, 1], shape (1, 8, 8), with their labels."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    labels = torch.from_numpy(bunch.target).long()
    return (
        TensorDataset(images[:N_TRAIN], labels[:N_TRAIN]),
        TensorDataset(images[N_TRAIN:], labels[N_TRAIN:]),
    )
