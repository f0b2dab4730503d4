"""Check stored results before any chunk of them is decoded.

Results may come from an untrusted source, like the run next to them. A caller names the arrays
that it expects, with shapes that follow from the run, and nothing else is read. The stored
documents choose no decoder: they must name the codecs that results are written with.
"""

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.storage import StorePath

from trajstore.format.arrays import ArraySpec
from trajstore.format.checks import check_of, check_of_bytes
from trajstore.format.chunk_size import ChunkSize
from trajstore.format.document import differences
from trajstore.format.run_spec import SchemaError
from trajstore.store.chunks import CheckedStore, ChunkError, read_bytes
from trajstore.store.location import open_store

CHECKSUMMED: Final = ArraySpec(
    dims=("step",), dtype="float64", inner=(), chunk=(1,), code="dense"
).metadata(0)["codecs"]
"""Codecs of results, those of the tables of a run. Every chunk is stored."""

CRC32C: Final = {"name": "crc32c"}

_BYTES: Final = {"name": "bytes", "configuration": {"endian": "little"}}
_ZSTD: Final = {"name": "zstd", "configuration": {"level": 0, "checksum": False}}

CODECS: Final = {
    "float64": (CHECKSUMMED, [_BYTES, _ZSTD]),
    "uint32": ([_BYTES, CRC32C],),
}
"""Permitted codecs by data type. Results of earlier versions have no checksums."""

FILL_VALUES: Final = {"float64": ("NaN", 0.0), "uint32": (0,)}

CHECKS: Final = "checks"
"""Attribute of a result with the check of each variable, by name."""


class ExpectedArray(NamedTuple):
    """An array that a group of results must have."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...] | None = None  # None allows every chunk within the shape
    dtype: str = "float64"


def read_metadata(location: str, path: str) -> Mapping[str, Any]:
    """Read the document of an array of results, empty if it is missing or no object."""
    store = CheckedStore(open_store(location, read_only=True), {})
    document = _read_document(store, path)
    return document if isinstance(document, Mapping) else {}


def read_attributes(location: str, group: str) -> Mapping[str, Any] | None:
    """Read the attributes of a group of results; return None without such a group."""
    store = CheckedStore(open_store(location, read_only=True), {})
    if (document := _read_document(store, group)) is None:
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
            is_packed=array.dtype != "uint32",
            has_checksum=documents[path]["codecs"][-1] == CRC32C,
        )
    if problems:
        raise SchemaError([f"{location}/{group}: {problem}" for problem in problems])
    store = CheckedStore(storage, sizes)
    arrays = [
        zarr.Array.from_dict(StorePath(store, path), document)
        for path, document in documents.items()
    ]
    return dict(zip(expected, arrays, strict=True))


def result_check(identity: str, place: str, values: npt.NDArray[Any]) -> int:
    """Return the crc32c of values of a result and their place, never 0."""
    # `identity` tells the result from results of other runs, and of other states of the run.
    before = check_of_bytes(f"{identity} {place}".encode())
    return check_of(np.asarray(values), before) or 1


def check_result(
    values: npt.NDArray[Any], identity: str, place: str, *, expected: object, key: str
) -> None:
    """Raise a ChunkError, which names `key`, if values do not match their check."""
    if result_check(identity, place, values) != expected:
        raise ChunkError(key, "is not the part of this result that was written there")


def writable_store(location: str) -> Store:
    """Return the store of results, ready to write a group into it."""
    store = open_store(location)
    root = _read_document(CheckedStore(store, {}), "")
    if root is not None and differences("", {"node_type": "group"}, root):
        raise SchemaError([f"{location} is not a store of results; delete it."])
    zarr.open_group(store, mode="a", use_consolidated=False, zarr_format=3)
    return store


def _read_document(store: CheckedStore, path: str) -> Any:
    """Read the document of an array or a group; return None if it is missing."""
    key = f"{path}/zarr.json".removeprefix("/")
    try:
        return json.loads(read_bytes(store, key) or b"null")
    except FileNotFoundError:  # There is no such directory.
        return None
    except ChunkError as error:
        raise SchemaError([f"{key} {error.reason}"]) from error
    except (ValueError, RecursionError) as error:
        raise SchemaError([f"{key} is truncated or damaged"]) from error


def _expected_document(expected: ExpectedArray, found: Any) -> dict[str, Any]:
    """Return the document that an array must have, with permitted choices of `found`."""
    chosen = found if isinstance(found, Mapping) else {}
    chunk = expected.chunk or [max(1, n) for n in expected.shape]
    grid: Any = {"name": "regular", "configuration": {"chunk_shape": list(chunk)}}
    if expected.chunk is None and _is_within(chosen.get("chunk_grid"), chunk):
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


def _is_within(grid: Any, largest: Sequence[int]) -> bool:
    """Whether a chunk grid is regular, with chunks of at most the largest shape."""
    try:
        chunk = grid["configuration"]["chunk_shape"]
        fits = all(
            type(c) is int and 0 < c <= n for c, n in zip(chunk, largest, strict=True)
        )
    except (TypeError, KeyError, ValueError):
        return False
    return fits and grid == {"name": "regular", "configuration": {"chunk_shape": chunk}}
