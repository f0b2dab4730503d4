"""Examples together with their indices, so that a batch says what it was made of."""

from typing import Any

from torch.utils.data import Dataset


class Numbered(Dataset[Any]):
    """A data set whose examples end in their indices.

    Nothing is drawn and nothing else is asked for: batches and random streams are those of
    the data set itself.

    Parameters
    ----------
    data : Dataset
        Tuples of tensors; has a length.
    """

    def __init__(self, data: Any) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (*self._data[index], index)
