"""Check stored results before any chunk of them is decoded.

Results may come from an untrusted source, like the run next to them. A caller names the arrays
that it expects, with shapes that follow from the run, and nothing else is read. The stored
documents choose no decoder: they must name the codecs that results are written with.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import zarr
from zarr.core.sync import sync
from zarr.storage import StorePath

from trajstore.format.chunk_size import ChunkSize
from trajstore.format.document import differences
from trajstore.format.run_spec import SchemaError
from trajstore.store.chunks import CheckedStore, ChunkError, read_bytes
from trajstore.store.location import is_remote, open_store

_BYTES: Final = {"name": "bytes", "configuration": {"endian": "little"}}
_ZSTD: Final = {"name": "zstd", "configuration": {"level": 0, "checksum": False}}
_BLOSC: Final = {
    "name": "blosc",
    "configuration": {
        "typesize": 8,
        "cname": "zstd",
        "clevel": 1,
        "shuffle": "shuffle",
        "blocksize": 0,
    },
}

CHECKSUMMED: Final = [_BYTES, _BLOSC, {"name": "crc32c"}]
"""Codecs of results. Every chunk is stored."""

CODECS: Final = {
    "float64": (CHECKSUMMED, [_BYTES, _ZSTD]),
    "bool": ([{"name": "bytes"}, _ZSTD], [_BYTES, _ZSTD]),
}
"""Permitted codecs by data type. Earlier results and marks have no checksums."""

FILL_VALUES: Final = {"float64": ("NaN", 0.0), "bool": (False,)}


class ExpectedArray(NamedTuple):
    """An array that a group of results must have."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...] | None = None  # None allows every chunk within the shape
    dtype: str = "float64"


def read_attributes(location: str, group: str) -> Mapping[str, Any] | None:
    """Read the attributes of a group of results; return None without such a group."""
    if not is_remote(location) and not Path(location).exists():
        return None
    store = CheckedStore(open_store(location, read_only=True), {})
    document = _read_document(store, group)
    if document is None:
        return None
    attributes = document.get("attributes") if isinstance(document, Mapping) else None
    if not isinstance(attributes, Mapping):
        raise SchemaError([f"{location}/{group}: attributes: expected an object"])
    return attributes


def open_arrays(
    location: str, group: str, expected: Mapping[str, ExpectedArray]
) -> dict[str, Any] | None:
    """Open arrays of a group as `zarr.Array`; return None if one of them is missing."""
    storage = open_store(location, read_only=True)
    problems, documents, sizes = [], {}, {}
    for name, array in expected.items():
        path = f"{group}/{name}"
        found = _read_document(CheckedStore(storage, {}), path)
        if found is None:
            return None
        documents[path] = _expected_document(array, found)
        problems += differences(name, documents[path], found)
        chunk = documents[path]["chunk_grid"]["configuration"]["chunk_shape"]
        sizes[path] = ChunkSize(
            prod(chunk) * np.dtype(array.dtype).itemsize,
            is_packed=True,
            has_checksum=documents[path]["codecs"] == CHECKSUMMED,
        )
    if problems:
        raise SchemaError([f"{location}/{group}: {problem}" for problem in problems])
    store = CheckedStore(storage, sizes)
    arrays = [
        zarr.Array.from_dict(StorePath(store, path), document)
        for path, document in documents.items()
    ]
    return dict(zip(expected, arrays, strict=True))


def missing_chunks(array: Any) -> set[int]:
    """Return the first indices of chunks that are missing; with checksums, all must exist."""
    if len(array.metadata.codecs) != len(CHECKSUMMED):
        return set()

    async def listed() -> list[str]:
        return [name async for name in array.store.list_dir(f"{array.path}/c")]

    names = set(sync(listed()))
    n_chunks = -(-array.shape[0] // array.chunks[0])
    return {i for i in range(n_chunks) if str(i) not in names}


def refuse_links(location: str, group: str) -> None:
    """Refuse to write to a group with links in it, which may lead out of the results."""
    top = Path(location, group)
    if not is_remote(location) and any(map(Path.is_symlink, (top, *top.rglob("*")))):
        raise ValueError(f"{top} contains links, and is not written to; delete it.")


def _read_document(store: CheckedStore, path: str) -> Any:
    """Read the document of an array or a group; return None if it is missing."""
    key = f"{path}/zarr.json"
    try:
        return json.loads(read_bytes(store, key) or b"null")
    except ChunkError as error:
        raise SchemaError([f"{key} {error.reason}"]) from error
    except (ValueError, RecursionError) as error:
        raise SchemaError([f"{key} is truncated or damaged"]) from error


def _expected_document(expected: ExpectedArray, found: Any) -> dict[str, Any]:
    """Return the document that an array must have, with permitted choices of `found`."""
    chosen = found if isinstance(found, Mapping) else {}
    grid = {"name": "regular", "configuration": {"chunk_shape": list(expected.shape)}}
    if expected.chunk:
        grid["configuration"] = {"chunk_shape": list(expected.chunk)}
    elif _is_within(chosen.get("chunk_grid"), expected.shape):
        grid = chosen["chunk_grid"]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(expected.shape),
        "data_type": expected.dtype,
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": _choice(chosen.get("fill_value"), FILL_VALUES[expected.dtype]),
        "codecs": _choice(chosen.get("codecs"), CODECS[expected.dtype]),
        "storage_transformers": [],
    }


def _choice(found: object, permitted: Sequence[Any]) -> Any:
    return found if found in permitted else permitted[0]


def _is_within(grid: Any, shape: Iterable[int]) -> bool:
    """Whether a chunk grid is regular, with chunks no larger than the shape."""
    try:
        chunk = grid["configuration"]["chunk_shape"]
        pairs = list(zip(chunk, shape, strict=True))
    except (TypeError, KeyError, ValueError):
        return False
    return grid == {"name": "regular", "configuration": {"chunk_shape": chunk}} and all(
        type(c) is int and 0 < c <= max(n, 1) for c, n in pairs
    )
