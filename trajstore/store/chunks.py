"""Chunks of a store, read within bounds and checked before they are decoded.

A store may have come from anywhere, and disks fail. How many bytes a chunk may have is
known from its array's metadata, so no more are read, and nothing that claims to unpack to
more is unpacked. A chunk that is not there is an error: Zarr would take it for zeros.
"""

import os
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.buffer import default_buffer_prototype
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, ObjectStore, WrapperStore

from trajstore.format.arrays import StoredArray
from trajstore.format.chunk_size import (
    BLOSC_HEADER_BYTES,
    CHECKSUM_BYTES,
    ChunkSize,
)

Array = npt.NDArray[Any]
Part = tuple[slice, ...]

MAX_DOCUMENT_BYTES: Final = 8 << 20
"""Longest JSON document that is read."""


class ChunkError(ValueError):
    """A chunk that is missing, or does not hold what was written.

    Attributes
    ----------
    key : str
        Key of the chunk in the store.
    reason : str
        What is wrong with it.
    """

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        self.reason = reason
        super().__init__(f"chunk {key} {reason}")

    def __reduce__(self) -> tuple[type["ChunkError"], tuple[str, str]]:
        return ChunkError, (self.key, self.reason)


class CheckedStore(WrapperStore[Store]):
    """A store that hands out nothing that is larger than it may be.

    Parameters
    ----------
    store : zarr.abc.store.Store
        Where the values are.
    sizes : mapping from str to ChunkSize
        Of the chunks of every array, by its path.
    """

    def __init__(self, store: Store, sizes: Mapping[str, ChunkSize]) -> None:
        super().__init__(store)
        self._sizes = dict(sizes)

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, self._sizes)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return a document, or a chunk that is safe to decode.

        Parameters
        ----------
        key : str
            Key in the store.
        prototype : zarr.core.buffer.BufferPrototype
            Kind of buffer.
        byte_range : zarr.abc.store.ByteRequest, optional
            Ignored: what is checked is the whole value.

        Returns
        -------
        zarr.core.buffer.Buffer or None
            None if there is no such document.

        Raises
        ------
        ChunkError
            If the chunk is missing, too long or too short, claims to unpack to another
            size, or lies outside the store.
        """
        del byte_range
        if isinstance(self._store, LocalStore):
            _check_place(self._store.root, key)
        size = self._sizes.get(key.partition("/c/")[0]) if "/c/" in key else None
        limit = MAX_DOCUMENT_BYTES if size is None else size.stored
        value = await self._get_bounded(key, prototype, limit)
        if value is None and size is None:
            return None
        if value is None:
            raise ChunkError(key, "is missing")
        if size is not None and (problem := _problem(value, size)):
            raise ChunkError(key, problem)
        return value

    async def _get_bounded(
        self, key: str, prototype: BufferPrototype, limit: int
    ) -> Buffer | None:
        if not isinstance(self._store, ObjectStore):
            # One byte more than allowed tells that there are more.
            request = RangeByteRequest(0, limit + 1)
            value = await self._store.get(key, prototype, request)
            if value is not None and len(value) > limit:
                raise ChunkError(key, f"is longer than the {limit} bytes it may have")
            return value
        # Of an empty object no range can be asked for. The size comes before the bytes.
        try:
            response = await self._store.store.get_async(key)
        except FileNotFoundError:
            return None
        if response.meta["size"] > limit:
            raise ChunkError(key, f"is longer than the {limit} bytes it may have")
        return prototype.buffer.from_bytes(await response.bytes_async())

    async def getsize(self, key: str) -> int:
        """Return the bytes of a value, without reading it."""
        return await self._store.getsize(key)

    async def getsize_prefix(self, prefix: str) -> int:
        """Return the bytes of all values below a prefix."""
        return await self._store.getsize_prefix(prefix)


def _check_place(root: Path, key: str) -> None:
    """Refuse what is no file of its own in the directory of the store."""
    path = Path(os.path.realpath(root / key))
    if not path.is_relative_to(os.path.realpath(root)):
        raise ChunkError(key, "leads out of the store")
    # Reading from a pipe or a device may never end.
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ChunkError(key, "is not a file")


def _problem(value: Buffer, size: ChunkSize) -> str | None:
    """Say why the stored bytes of a chunk cannot be decoded to its size."""
    if not size.is_packed:
        if len(value) == size.stored:
            return None
        return f"has {len(value)} bytes instead of {size.stored}"
    if len(value) < BLOSC_HEADER_BYTES + CHECKSUM_BYTES:
        return f"has only {len(value)} bytes"
    # Of Blosc's header: the unpacked bytes, those of a block, and the packed bytes.
    header = value[:BLOSC_HEADER_BYTES].to_bytes()
    unpacked, block, packed = np.frombuffer(header, "<u4")[1:].tolist()
    if unpacked != size.decoded:
        return f"claims to unpack to {unpacked} bytes instead of {size.decoded}"
    if packed != len(value) - CHECKSUM_BYTES or not 0 < block <= unpacked:
        return "has a damaged header"
    return None


class Read(NamedTuple):
    """A part of an array, as far as it could be read.

    Attributes
    ----------
    values : numpy.ndarray
        NaN in what is missing, 0 if the array is one of integers.
    missing : numpy.ndarray or None
        bool, of the same shape: what could not be read. None if everything could.
    errors : tuple of ChunkError
        One for each damaged chunk.
    """

    values: Array
    missing: npt.NDArray[np.bool_] | None = None
    errors: tuple[ChunkError, ...] = ()


def read_part(array: Any, part: Part) -> Read:
    """Read a part of an array, going on where chunks are damaged.

    Parameters
    ----------
    array : zarr.Array
        In a `CheckedStore`.
    part : tuple of slice
        One for each dimension, inside the array and without steps.

    Returns
    -------
    Read
        Values, and what is missing of them.
    """
    try:
        return Read(_read(array, part))
    except ChunkError:
        pass
    shape = tuple(s.stop - s.start for s in part)
    is_float = np.issubdtype(array.dtype, np.floating)
    values = np.full(shape, np.nan if is_float else 0, array.dtype)
    missing = np.zeros(shape, bool)
    errors = []
    for chunk in chunks_of(array, part):
        inside = tuple(
            slice(max(s.start, c.start), min(s.stop, c.stop))
            for s, c in zip(part, chunk, strict=True)
        )
        place = tuple(
            slice(i.start - s.start, i.stop - s.start)
            for i, s in zip(inside, part, strict=True)
        )
        try:
            values[place] = read_chunk(array, inside)
        except ChunkError as error:
            missing[place] = True
            errors.append(error)
    return Read(values, missing, tuple(errors)) if errors else Read(values)


def read_chunk(array: Any, part: Part) -> Array:
    """Read what lies in one chunk of an array.

    Parameters
    ----------
    array : zarr.Array
        In a `CheckedStore`.
    part : tuple of slice
        A part of one chunk, or all of it.

    Returns
    -------
    numpy.ndarray
        Its values.

    Raises
    ------
    ChunkError
        If the chunk is damaged.
    """
    try:
        return _read(array, part)
    except ChunkError as error:
        # Zarr's own errors do not say which chunk it was.
        raise ChunkError(chunk_key(array, part), error.reason) from error


def chunks_of(array: Any, part: Part | None = None) -> Iterator[Part]:
    """Give the places of the chunks of an array that touch a part of it, or of all."""
    part = part or tuple(slice(0, n) for n in array.shape)
    indices = (
        range(s.start // n, -(-s.stop // n)) if s.stop > s.start else range(0)
        for s, n in zip(part, array.chunks, strict=True)
    )
    for index in product(*indices):
        yield tuple(
            slice(i * n, min((i + 1) * n, size))
            for i, n, size in zip(index, array.chunks, array.shape, strict=True)
        )


def chunk_key(array: Any, chunk: Part) -> str:
    """Return the key of the chunk in the store that a part of it begins in."""
    index = (s.start // n for s, n in zip(chunk, array.chunks, strict=True))
    return "/".join([array.path, "c", *map(str, index)])


def _read(array: Any, part: Part) -> Array:
    try:
        values: Array = array[part]
    except ChunkError:
        raise
    except ValueError as error:
        raise ChunkError(array.path, f"is damaged: {error}") from error
    except RuntimeError as error:
        if "blosc" not in str(error):
            raise
        raise ChunkError(array.path, f"is damaged: {error}") from error
    return values


def open_array(store: CheckedStore, path: str, array: StoredArray) -> Any:
    """Return an array of the store as a `zarr.Array`; reads nothing."""
    place = zarr.storage.StorePath(store, path)
    metadata: Any = array.metadata()
    return zarr.Array.from_dict(place, metadata)


def read_bytes(store: Store, key: str) -> bytes | None:
    """Read a whole small document of a `CheckedStore`, or None if there is none."""
    value = sync(store.get(key, default_buffer_prototype()))
    return None if value is None else value.to_bytes()
