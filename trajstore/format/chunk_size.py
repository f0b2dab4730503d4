"""Compute the size of a chunk in memory and on disk."""

from math import prod
from typing import Final, NamedTuple

from trajstore.format.arrays import ITEM_SIZE, ArraySpec

CHECKSUM_BYTES: Final = 4
BLOSC_HEADER_BYTES: Final = 16


class ChunkSize(NamedTuple):
    """Size of a whole chunk in bytes."""

    decoded: int  # size in memory
    is_packed: bool  # whether Blosc packs the chunk; a checksum follows either way

    @property
    def stored(self) -> int:
        """Largest size of the chunk in the store."""
        packing = BLOSC_HEADER_BYTES if self.is_packed else 0
        return self.decoded + packing + CHECKSUM_BYTES


def chunk_size(array: ArraySpec) -> ChunkSize:
    """Return the size of an array's chunks."""
    return ChunkSize(prod(array.chunk) * ITEM_SIZE[array.dtype], array.code != "none")
