"""Data sets of the workloads, one per module, and their embedded stand-ins.

A data set's loader, such as `cifar10.cifar10`, takes ``"true"`` or ``"embedded"`` and a
directory, and returns `Splits`. `digits`, `english` and `shapes` need no download; `hub`,
`images` and `words` are shared by several data sets.

Imports torch and scikit-learn; to load true data, also ``datasets`` and Pillow. Start reading
with `cifar10`.
"""

from typing import Any, NamedTuple

from torch.utils.data import Dataset


class Splits(NamedTuple):
    """Training and validation data; every example is a pair of tensors, input and target."""

    train: Dataset[Any]
    validation: Dataset[Any] | None
    n_classes: int  # number of model outputs for each input, pixel or token
