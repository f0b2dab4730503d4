"""Size of a chunk in memory and on disk."""

from math import prod
from typing import Final, NamedTuple

from trajstore.format.arrays import ITEM_SIZE, ArraySpec

CHECKSUM_BYTES: Final = 4
BLOSC_HEADER_BYTES: Final = 16


class ChunkSize(NamedTuple):
    """Bytes of a whole chunk."""

    decoded: int
    is_packed: bool  # by Blosc; other chunks are stored as they are, with a checksum

    @property
    def stored(self) -> int:
        """Most bytes in the store."""
        packing = BLOSC_HEADER_BYTES if self.is_packed else 0
        return self.decoded + packing + CHECKSUM_BYTES


def chunk_size(array: ArraySpec) -> ChunkSize:
    """Return the size of an array's chunks."""
    return ChunkSize(prod(array.chunk) * ITEM_SIZE[array.dtype], array.code != "none")
