"""Sizes of the parts of a store."""

from contextlib import suppress
from typing import Final

from zarr.abc.store import Store
from zarr.core.sync import sync

MAX_LISTINGS: Final = 10
"""Largest number of attempts to list a store that changes during the listing."""


def bytes_below(store: Store, prefix: str) -> int:
    """Return the size of everything below a prefix, in bytes."""
    for _ in range(MAX_LISTINGS):
        # While a run is recorded, a file may be renamed between listing and reading its size.
        with suppress(FileNotFoundError):
            return sync(store.getsize_prefix(prefix))
    return 0
