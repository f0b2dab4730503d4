"""Data set whose examples carry their indices."""

from typing import Any

from torch.utils.data import Dataset


class IndexedDataset(Dataset[Any]):
    """Appends its index to every example of a data set."""

    # It draws no random numbers and reads nothing else, so that batches and random streams
    # are the same as without it.

    def __init__(self, data: Any) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (*self._data[index], index)
