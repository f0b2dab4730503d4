"""Encode chunks as the metadata of their array says.

Zarr makes the same bytes, but runs about a millisecond of Python for each chunk. Small networks, whose
chunks are small, would spend more time there than with compressing and writing.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs.blosc import Blosc  # type: ignore[import-untyped]

from trajstore.format.arrays import ArraySpec

Array = npt.NDArray[Any]


class _Codecs(NamedTuple):
    """What happens to the elements of a chunk, before the checksum follows them."""

    order: list[int] | None  # of the dimensions; None if it stays
    blosc: Blosc | None


@lru_cache(maxsize=1024)
def _codecs_of(spec: ArraySpec) -> _Codecs:
    metadata: Any = spec.metadata(0)
    given = {c["name"]: c.get("configuration", {}) for c in metadata["codecs"]}
    assert given.keys() <= {"transpose", "bytes", "blosc", "crc32c"}
    blosc = given.get("blosc")
    if blosc is not None:
        shuffle = Blosc.SHUFFLE if blosc["shuffle"] == "shuffle" else Blosc.NOSHUFFLE
        blosc = Blosc(**blosc | {"shuffle": shuffle})
    return _Codecs(given.get("transpose", {}).get("order"), blosc)


def encoded_chunk(values: Array, spec: ArraySpec) -> bytes:
    """Return the stored bytes of a chunk, given its elements within the shape of the array."""
    chunk = np.asarray(values, np.dtype(spec.dtype).newbyteorder("<"))
    if chunk.shape != spec.chunk:
        whole = np.full(spec.chunk, spec.missing, chunk.dtype)
        whole[tuple(map(slice, chunk.shape))] = chunk
        chunk = whole
    order, blosc = _codecs_of(spec)
    chunk = np.ascontiguousarray(chunk if order is None else chunk.transpose(order))
    text = chunk.tobytes() if blosc is None else blosc.encode(chunk)
    check: int = google_crc32c.value(text)
    return b"".join((text, check.to_bytes(4, "little")))
