"""Bytes of a chunk, from its array's metadata."""

from collections.abc import Mapping
from math import prod
from typing import Any, Final, NamedTuple

from trajstore.format.arrays import ITEM_SIZE

CHECKSUM_BYTES: Final = 4
BLOSC_HEADER_BYTES: Final = 16


class ChunkSize(NamedTuple):
    """Bytes of a whole chunk.

    Attributes
    ----------
    decoded : int
        In memory.
    is_packed : bool
        Whether Blosc packs it; else the stored bytes are as many, and the checksum's.
    """

    decoded: int
    is_packed: bool

    @property
    def stored(self) -> int:
        """Most bytes in the store."""
        packing = BLOSC_HEADER_BYTES if self.is_packed else 0
        return self.decoded + packing + CHECKSUM_BYTES


def chunk_size(document: Mapping[str, Any]) -> ChunkSize:
    """Return the size of the chunks of an array with this metadata document."""
    shape = document["chunk_grid"]["configuration"]["chunk_shape"]
    is_packed = any(codec["name"] == "blosc" for codec in document["codecs"])
    return ChunkSize(prod(shape) * ITEM_SIZE[document["data_type"]], is_packed)
