"""Read chunks of a store up to a size limit, and check them before decoding.

A store may come from an untrusted source, and disks fail. The metadata of an array
determines the size of its chunks: a longer chunk is not read, and a chunk whose header
states another unpacked size is not unpacked. A missing chunk is an error here; Zarr would
return the fill value instead. Only results of earlier versions lack checksums and empty chunks.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.buffer import default_buffer_prototype
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.sync import sync
from zarr.storage import ObjectStore, WrapperStore

from trajstore.format.arrays import StoredArray
from trajstore.format.checks import (
    CheckList,
    LostChecksError,
    StoredChecks,
    check_of,
    n_columns,
)
from trajstore.format.chunk_size import (
    BLOSC_HEADER_BYTES,
    CHECKSUM_BYTES,
    ChunkSize,
)
from trajstore.store.location import OutsideStoreError
from trajstore.store.patience import explained_errors

Array = npt.NDArray[Any]
Part = tuple[slice, ...]

ZSTD_MAGIC: Final = bytes.fromhex("28b52ffd")
ZSTD_HEADER_BYTES: Final = 14  # largest header of a frame without a dictionary

MISPLACED: Final = (
    "is not the chunk that was committed there: it belongs to another place, another commit or "
    "another run"
)

MAX_DOCUMENT_BYTES: Final = 8 << 20  # largest permitted JSON document


MISSING: Final = "is missing"
"""What is wrong with a chunk that does not exist."""


class ChunkError(ValueError):
    """A chunk that is missing or damaged."""

    def __init__(self, key: str, reason: str) -> None:
        self.key = key  # key of the chunk in the store
        self.reason = reason
        super().__init__(f"chunk {key} {reason}")

    def __reduce__(self) -> tuple[type["ChunkError"], tuple[str, str]]:
        return ChunkError, (self.key, self.reason)


class CheckedStore(WrapperStore[Store]):
    """A store that returns only values of a permitted size."""

    def __init__(self, store: Store, sizes: Mapping[str, ChunkSize]) -> None:
        super().__init__(store)
        self._sizes = dict(sizes)  # permitted sizes of chunks by path of the array

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, self._sizes)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return a document (None if missing), or a chunk that is safe to decode."""
        del byte_range  # The check needs the whole value.
        # The only chunk of an array without dimensions has the key ".../c".
        name, is_chunk, _ = f"{key}/".partition("/c/")
        size = self._sizes.get(name) if is_chunk else None
        limit = MAX_DOCUMENT_BYTES if size is None else size.stored
        try:
            value = await self._get_bounded(key, prototype, limit)
        except OutsideStoreError as error:
            raise ChunkError(key, error.reason) from error
        if value is None and (size is None or not size.has_checksum):
            return None
        if value is None:
            raise ChunkError(key, MISSING)
        if size is not None and (damage := _damage(value, size)):
            raise ChunkError(key, damage)
        return value

    async def _get_bounded(
        self, key: str, prototype: BufferPrototype, limit: int
    ) -> Buffer | None:
        if not isinstance(self._store, ObjectStore):
            # Read one byte beyond the limit, to notice values that are longer.
            request = RangeByteRequest(0, limit + 1)
            value = await self._store.get(key, prototype, request)
            if value is not None and len(value) > limit:
                raise ChunkError(key, f"is longer than the {limit} bytes it may have")
            return value
        # An empty object has no valid range. The response gives the size before the bytes.
        with explained_errors():
            try:
                response = await self._store.store.get_async(key)
            except FileNotFoundError:
                return None
            if response.meta["size"] > limit:
                raise ChunkError(key, f"is longer than the {limit} bytes it may have")
            return prototype.buffer.from_bytes(await response.bytes_async())

    async def getsize(self, key: str) -> int:
        """Return the number of bytes of a value, without reading it."""
        return await self._store.getsize(key)

    async def getsize_prefix(self, prefix: str) -> int:
        """Return the number of bytes of all values below a prefix."""
        return await self._store.getsize_prefix(prefix)


def _damage(value: Buffer, size: ChunkSize) -> str | None:
    """Describe damage that keeps a stored chunk from being decoded; None if none is found."""
    if not size.has_checksum:
        unpacked = _zstd_content_size(value[:ZSTD_HEADER_BYTES].to_bytes())
        if unpacked == size.decoded:
            return None
        return f"claims to unpack to {unpacked} bytes instead of {size.decoded}"
    if not size.is_packed:
        if len(value) == size.stored:
            return None
        return f"has {len(value)} bytes instead of {size.stored}"
    if len(value) < BLOSC_HEADER_BYTES + CHECKSUM_BYTES:
        return f"has only {len(value)} bytes"
    # Blosc's header gives the sizes of the unpacked chunk, a block and the packed chunk.
    header = value[:BLOSC_HEADER_BYTES].to_bytes()
    unpacked, block, packed = np.frombuffer(header, "<u4")[1:].tolist()
    if unpacked != size.decoded:
        return f"claims to unpack to {unpacked} bytes instead of {size.decoded}"
    if packed != len(value) - CHECKSUM_BYTES or not 0 < block <= unpacked:
        return "has a damaged header"
    return None


def _zstd_content_size(header: bytes) -> int:
    """Return the unpacked size in the header of a Zstandard frame; -1 without one."""
    # RFC 8878, section 3.1.1: magic number, descriptor, [window], [dictionary], content size.
    descriptor = header[4] if header.startswith(ZSTD_MAGIC) and len(header) > 5 else 0
    size_flag, is_single = descriptor >> 6, descriptor >> 5 & 1
    if descriptor & 3 or not (size_flag or is_single):
        return -1
    start = 5 if is_single else 6
    size = int.from_bytes(header[start : start + (1 << size_flag)], "little")
    return size + 256 if size_flag == 1 else size


class ChunkChecks(NamedTuple):
    """Checks with which the chunks of an array are compared."""

    array: Any  # array with the shape that the checks belong to
    list: CheckList
    pending: Sequence[int]  # further permitted checks of the last row of chunks
    lost: dict[str, ChunkError]  # segments that could not be read, by key

    def read(self, part: Part) -> Array:
        """Read a part; a ChunkError names a chunk that is not the committed one."""
        whole = whole_chunks(self.array, part)
        values = _read(self.array, whole)
        self.compare(whole, values)
        return values[_within(part, whole)]

    def compare(self, whole: Part, values: Array) -> None:
        """Compare the values of whole chunks with their checks."""
        # Properties of Zarr arrays are computed whenever they are read.
        shape, chunks = self.array.shape, self.array.chunks
        for chunk in _cut(whole, shape, chunks):
            index = 0
            for part, size, n in zip(chunk, shape, chunks, strict=True):
                index = index * -(-size // n) + part.start // n
            try:
                expected = [self.list[index], *self._alternatives(index)]
            except LostChecksError as error:
                text = (
                    "is missing or damaged, so its chunks are read without this check"
                )
                self.lost[error.key] = ChunkError(error.key, text)
                continue
            own = values if chunk == whole else values[_within(chunk, whole)]
            if check_of(own) not in expected:
                raise ChunkError(chunk_key(self.array, chunk), MISPLACED)

    def _alternatives(self, index: int) -> Sequence[int]:
        n_fixed = len(self.list) - len(self.pending)
        return [self.pending[index - n_fixed]] if index >= n_fixed else []


class ReadResult(NamedTuple):
    """The readable values of a part of an array."""

    values: Array  # missing floats are NaN, missing integers 0
    # Mask of the missing values, in the shape of `values`; None if no value is missing.
    missing: npt.NDArray[np.bool_] | None = None
    errors: tuple[ChunkError, ...] = ()  # one error for each damaged chunk


def read_part(array: Any, part: Part, checks: ChunkChecks | None = None) -> ReadResult:
    """Read a part of a `zarr.Array` in a `CheckedStore`, skipping damaged chunks."""
    try:
        return ReadResult(checks.read(part) if checks else _read(array, part))
    except ChunkError:
        pass
    shape = tuple(s.stop - s.start for s in part)
    is_float = np.issubdtype(array.dtype, np.floating)
    values = np.full(shape, np.nan if is_float else 0, array.dtype)
    missing = np.zeros(shape, bool)
    errors = []
    for chunk in chunks_of(array, part):
        overlap = tuple(
            slice(max(s.start, c.start), min(s.stop, c.stop))
            for s, c in zip(part, chunk, strict=True)
        )
        position = _within(overlap, part)
        try:
            values[position] = read_chunk(array, overlap, checks)
        except ChunkError as error:
            missing[position] = True
            errors.append(error)
    return ReadResult(values, missing, tuple(errors)) if errors else ReadResult(values)


def read_chunk(array: Any, part: Part, checks: ChunkChecks | None = None) -> Array:
    """Read a chunk, or a part of a chunk, of a `zarr.Array` in a `CheckedStore`."""
    try:
        return checks.read(part) if checks else _read(array, part)
    except ChunkError as error:
        # Zarr's own errors do not name the chunk.
        raise ChunkError(chunk_key(array, part), error.reason) from error


def chunks_of(array: Any, part: Part | None = None) -> Iterator[Part]:
    """Yield the slices of each chunk that overlaps a part (by default all) of an array."""
    shape, chunks = array.shape, array.chunks
    return _cut(part or tuple(slice(0, n) for n in shape), shape, chunks)


def _cut(part: Part, shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[Part]:
    """Yield the slices of each chunk that overlaps a part of an array of this shape."""
    indices = (
        range(s.start // n, -(-s.stop // n)) if s.stop > s.start else range(0)
        for s, n in zip(part, chunks, strict=True)
    )
    for index in product(*indices):
        yield tuple(
            slice(i * n, min((i + 1) * n, size))
            for i, n, size in zip(index, chunks, shape, strict=True)
        )


def whole_chunks(array: Any, part: Part) -> Part:
    """Enlarge a part of an array to whole chunks."""
    return tuple(
        slice(s.start // n * n, min(-(-s.stop // n) * n, size))
        for s, n, size in zip(part, array.chunks, array.shape, strict=True)
    )


def _within(part: Part, whole: Part) -> Part:
    """Return the slices that select a part of an array from a larger part."""
    return tuple(
        slice(p.start - w.start, p.stop - w.start)
        for p, w in zip(part, whole, strict=True)
    )


def chunk_key(array: Any, chunk: Part) -> str:
    """Return the key of the chunk that holds the first element of a part."""
    index = (s.start // n for s, n in zip(chunk, array.chunks, strict=True))
    return "/".join([array.path, "c", *map(str, index)])


def _read(array: Any, part: Part) -> Array:
    with naming_damage(array.path):
        values: Array = array[part]
    return values


@contextmanager
def naming_damage(path: str) -> Iterator[None]:
    """Turn an error of decoding a chunk of an array into a `ChunkError`."""
    try:
        yield
    except ChunkError:
        raise
    except ValueError as error:
        raise ChunkError(path, f"is damaged: {error}") from error
    except RuntimeError as error:
        if not any(codec in str(error) for codec in ("blosc", "Zstd")):
            raise
        raise ChunkError(path, f"is damaged: {error}") from error


def open_checks(store: CheckedStore, path: str, checks: StoredChecks) -> ChunkChecks:
    """Return the checks of an array's chunks, without reading anything."""

    def load(key: str) -> bytes:
        try:
            return read_bytes(store, key) or b""
        except ChunkError:
            return b""

    levels, n_last = checks.open, n_columns(checks.array.spec)
    return ChunkChecks(
        open_array(store, path, checks.array),
        CheckList(path, load, n_last=n_last, levels=levels),
        checks.pending.tolist(),
        {},
    )


def open_array(store: CheckedStore, path: str, array: StoredArray) -> Any:
    """Return an array of the store as a `zarr.Array`, without reading anything."""
    store_path = zarr.storage.StorePath(store, path)
    metadata: Any = array.metadata()
    return zarr.Array.from_dict(store_path, metadata)


def read_bytes(store: Store, key: str) -> bytes | None:
    """Read a whole document of a `CheckedStore`; return None if it is missing."""
    value = sync(store.get(key, default_buffer_prototype()))
    return None if value is None else value.to_bytes()
