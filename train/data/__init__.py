"""Data sets, one per file."""

from typing import Any, NamedTuple

from torch.utils.data import Dataset


class Splits(NamedTuple):
    """What a training learns from, and what it is tested on.

    Attributes
    ----------
    train : torch.utils.data.Dataset
        Pairs of tensors, input and target.
    validation : torch.utils.data.Dataset or None
        The same; None where nothing is held back.
    n_classes : int
        Numbers that a model is to return for each input, pixel or token.
    """

    train: Dataset[Any]
    validation: Dataset[Any] | None
    n_classes: int
