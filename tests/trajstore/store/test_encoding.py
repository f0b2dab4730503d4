"""Chunks have the bytes that Zarr would write."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore, StorePath

from trajstore.format.arrays import ITEM_SIZE, ArraySpec, Code
from trajstore.store.encoding import encoded_chunk

CHUNKS: dict[str, tuple[int, ...]] = {
    "vector": (7,),
    "matrix": (4, 6),
    "cube": (3, 2, 5),
}


def bytes_of_zarr(values: Any, spec: ArraySpec) -> bytes:
    """Let Zarr write an array of one chunk; return the file."""
    store, metadata = MemoryStore(), spec.metadata(len(values))
    document: Any = metadata
    array = zarr.Array.from_dict(StorePath(store, "a"), document)
    array[...] = values
    (chunk,) = (v for k, v in store._store_dict.items() if k.startswith("a/c"))
    text: bytes = chunk.to_bytes()
    return text


@pytest.mark.parametrize("shape", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("code", ["none", "fast", "dense"])
@pytest.mark.parametrize("dtype", ITEM_SIZE)
@pytest.mark.parametrize("missing", [0, 1, 2], ids=["whole", "one less", "two less"])
def test_a_chunk_has_the_bytes_that_zarr_writes(
    missing: int, dtype: str, code: Code, shape: tuple[int, ...]
):
    spec = ArraySpec(
        dims=("step", "a", "b")[: len(shape)],
        dtype=dtype,
        inner=shape[1:],
        chunk=shape,
        code=code,
    )
    if len(shape) > 1:
        # The last chunk of a dimension may hold fewer elements, too.
        spec = replace(spec, inner=(shape[1] - missing // 2, *shape[2:]))
    rng = np.random.default_rng(1)
    size = (shape[0] - missing, *spec.inner)
    values = rng.integers(0, 100, size).astype(np.float64)
    assert encoded_chunk(values, spec) == bytes_of_zarr(values, spec)


def test_a_large_chunk_has_the_bytes_that_zarr_writes():
    """Blosc cuts it into several blocks."""
    spec = ArraySpec(
        dims=("step", "a"),
        dtype="float32",
        inner=(300,),
        chunk=(1024, 300),
        code="dense",
    )
    values = np.random.default_rng(1).standard_normal((1000, 300)).round(2)
    assert encoded_chunk(values, spec) == bytes_of_zarr(values, spec)
