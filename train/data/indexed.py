"""A data set whose examples include their indices."""

from typing import Any

from torch.utils.data import Dataset


class IndexedDataset(Dataset[Any]):
    """A data set with the index of every example appended to the example."""

    # The wrapper draws no random numbers and reads no additional examples, so batches and
    # random streams are the same as with the wrapped data set alone.

    def __init__(self, data: Any) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (*self._data[index], index)
