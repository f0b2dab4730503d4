"""Compute the size of a chunk in memory and on disk."""

from math import prod
from typing import Final, NamedTuple

from trajstore.format.arrays import ITEM_SIZE, ArraySpec

CHECKSUM_BYTES: Final = 4
BLOSC_HEADER_BYTES: Final = 16
ZSTD_OVERHEAD_BYTES: Final = 128


class ChunkSize(NamedTuple):
    """Size of a whole chunk in bytes."""

    decoded: int  # size in memory
    is_packed: bool  # whether Blosc packs the chunk, and Zstandard without a checksum
    has_checksum: bool = True  # False in results of earlier versions

    @property
    def stored(self) -> int:
        """Largest size of the chunk in the store."""
        if not self.has_checksum:
            return self.decoded + self.decoded // 256 + ZSTD_OVERHEAD_BYTES
        packing = BLOSC_HEADER_BYTES if self.is_packed else 0
        return self.decoded + packing + CHECKSUM_BYTES


def chunk_size(array: ArraySpec) -> ChunkSize:
    """Return the size of an array's chunks."""
    return ChunkSize(prod(array.chunk) * ITEM_SIZE[array.dtype], array.code != "none")
