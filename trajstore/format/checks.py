"""Check that a chunk is the one that was committed, at its place, and seal the root document.

The checksum in a chunk finds changed bytes, but a copy of another chunk has a valid checksum.
The root document therefore holds a list of checks for every array. A check is the crc32c of the
values of one chunk within the shape of the array, row-major and little-endian. The list grows
with the array, so it is stored as a tree: every `SEGMENT` checks of complete chunks become a
segment, a small file next to the chunks, and only the check of the segment stays in the list
one level higher. The root document holds the rest of every level, and a checksum of itself.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from math import prod
from typing import Any, Final, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import ArraySpec, StoredArray
from trajstore.format.run_spec import SchemaError

Array = npt.NDArray[Any]
Load = Callable[[str], bytes]
"""Function that reads the file of a key; returns nothing if there is no such file."""

SEGMENT: Final = 256
"""Number of checks in a segment."""

CHECK: Final = np.dtype("<u4")

CACHED_SEGMENTS: Final = 64

SEALED: Final = b'{"zarr_format": 3, "node_type": "group", "attributes": {"checksum": "'
"""Beginning of a sealed document; the crc32c of the rest follows in 8 hexadecimal digits."""


class LostChecksError(ValueError):
    """A segment of checks that is missing or damaged."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key  # key of the segment in the store


class StoredChecks(NamedTuple):
    """Checks of an array's chunks, as a root document holds them."""

    array: StoredArray
    open: tuple[Array, ...]  # checks outside of segments by level, each uint32
    # Further permitted checks of the last row of chunks, whose last row is being amended.
    pending: Array


def check_of(values: Array, before: int = 0) -> int:
    """Return the crc32c of values that follow values with the crc32c `before`."""
    check: int = google_crc32c.extend(before, np.ascontiguousarray(values))
    return check


def n_columns(spec: ArraySpec) -> int:
    """Return the number of chunks that hold the same rows."""
    return prod(-(-n // c) for n, c in zip(spec.inner, spec.chunk[1:], strict=True))


def n_chunks(array: StoredArray) -> int:
    """Return the number of chunks of an array."""
    return -(-array.length // array.spec.chunk[0]) * n_columns(array.spec)


def open_sizes(n: int, n_last: int) -> list[int]:
    """Return the number of checks outside of segments by level, for `n` checks in total."""
    # The last `n_last` chunks may still change, so their checks are not in a segment.
    sizes = []
    while n:
        n_sealed = max(0, n - n_last) // SEGMENT
        sizes.append(n - n_sealed * SEGMENT)
        n, n_last = n_sealed, 0
    return sizes


@dataclass(frozen=True, slots=True)
class RootChecks:
    """The checks in a root document, decoded array by array when they are used."""

    arrays: Mapping[str, StoredArray]  # arrays of the same document, by path
    texts: Mapping[str, object]
    pending: Mapping[str, object]

    def of(self, path: str) -> StoredChecks | None:
        """Return the checks of an array, None if the document has no such array."""
        if path not in self.arrays:
            return None
        array = self.arrays[path]
        n_last = n_columns(array.spec)
        sizes = open_sizes(n_chunks(array), n_last)
        try:
            checks = _decoded(self.texts.get(path), sum(sizes))
            pending = _decoded(self.pending.get(path, ""), n_last, is_optional=True)
        except ValueError as error:
            raise SchemaError([f"checks: {path}: {error}"]) from error
        stops = [*accumulate(sizes)]
        levels = [checks[stop - n : stop] for n, stop in zip(sizes, stops, strict=True)]
        return StoredChecks(array, tuple(levels), pending)


def encoded(checks: Iterable[int]) -> str:
    """Return checks as text, as `RootChecks` decodes it."""
    return b64encode(np.fromiter(checks, CHECK).tobytes()).decode()


def _decoded(text: object, n: int, *, is_optional: bool = False) -> Array:
    # The length is compared first, so a forged text is not decoded.
    if is_optional and text == "":
        return np.empty(0, CHECK)
    n_bytes = CHECK.itemsize * n
    if not isinstance(text, str) or len(text) != -(-n_bytes // 3) * 4:
        raise ValueError(f"expected {n} checks")
    return np.frombuffer(b64decode(text, validate=True), CHECK, n)


class CheckList:
    """The checks of an array's chunks in row-major order; grows at its end."""

    def __init__(
        self, path: str, load: Load, *, n_last: int, levels: Sequence[Array] = ()
    ) -> None:
        self._path, self._load, self._n_last = path, load, n_last
        self._levels: list[list[int]] = [level.tolist() for level in levels]
        # Segments are immutable, because their keys contain their checks.
        self._sealed: dict[str, bytes] = {}  # segments that are not written yet
        self._text: str | None = None

    def __len__(self) -> int:
        return self._length(0)

    def __getitem__(self, index: int) -> int:
        """Return a check; a LostChecksError names the segment that should hold it."""
        return self._get(0, index)

    def text(self) -> str:
        """Return the part of the list that belongs in the root document."""
        if self._text is None:
            self._text = encoded(check for level in self._levels for check in level)
        return self._text

    def extend(self, checks: Sequence[int]) -> None:
        """Append checks."""
        self._open(0).extend(checks)
        self._text = None

    def last(self) -> list[int]:
        """Return the checks of the last chunks, which may still change."""
        return self._levels[0][-self._n_last :]

    def replace_last(self, checks: Sequence[int]) -> None:
        """Replace the checks of the last chunks."""
        self._levels[0][-self._n_last :] = checks
        self._text = None

    def truncate(self, n: int) -> None:
        """Keep the first `n` checks."""
        self._truncate(0, n, self._n_last)
        self._text = None

    def seal(self) -> dict[str, bytes]:
        """Move checks to segments; return the segments to write, by key."""
        n_kept, level = self._n_last, 0
        while level < len(self._levels):
            checks = self._levels[level]
            while len(checks) - n_kept >= SEGMENT:
                segment = np.array(checks[:SEGMENT], CHECK).tobytes()
                del checks[:SEGMENT]
                index, check = self._length(level + 1), check_of_bytes(segment)
                self._sealed[self._key(level, index, check)] = segment
                self._open(level + 1).append(check)
                self._text = None
            n_kept, level = 0, level + 1
        return self._sealed

    def written(self) -> None:
        """Forget segments after they were written."""
        self._sealed = {}

    def _open(self, level: int) -> list[int]:
        if level == len(self._levels):
            self._levels.append([])
        return self._levels[level]

    def _length(self, level: int) -> int:
        if level >= len(self._levels):
            return 0
        return len(self._levels[level]) + SEGMENT * self._length(level + 1)

    def _truncate(self, level: int, n: int, n_last: int) -> None:
        n_sealed = max(0, n - n_last) // SEGMENT
        kept = [self._get(level, i) for i in range(n_sealed * SEGMENT, n)]
        if level < len(self._levels):
            self._truncate(level + 1, n_sealed, 0)
            self._levels[level] = kept

    def _get(self, level: int, index: int) -> int:
        n_sealed = SEGMENT * self._length(level + 1)
        if index >= n_sealed:
            return self._levels[level][index - n_sealed]
        number, place = divmod(index, SEGMENT)
        segment = self._segment(level, number, self._get(level + 1, number))
        return int(segment[place])

    @cached_property
    def _segment(self) -> Callable[[int, int, int], Array]:
        return lru_cache(maxsize=CACHED_SEGMENTS)(self._read_segment)

    def _read_segment(self, level: int, number: int, check: int) -> Array:
        key = self._key(level, number, check)
        segment = self._sealed.get(key)
        if segment is None:
            segment = self._load(key)
        if len(segment) != SEGMENT * CHECK.itemsize or check_of_bytes(segment) != check:
            raise LostChecksError(key)
        return np.frombuffer(segment, CHECK)

    def _key(self, level: int, number: int, check: int) -> str:
        return f"{self._path}/checks/{level}/{number}-{check:08x}"


def check_of_bytes(text: bytes) -> int:
    """Return the crc32c of bytes."""
    check: int = google_crc32c.value(text)
    return check


def seal(document: Mapping[str, Any]) -> bytes:
    """Encode the document of a group, with a checksum of its bytes at a fixed place."""
    attributes = {"checksum": 8 * "0", **document["attributes"]}
    rest = json.dumps({**document, "attributes": attributes}).encode()
    rest = rest[len(SEALED) + 8 :]
    return SEALED + b"%08x" % check_of_bytes(rest) + rest


def is_sealed(text: bytes) -> bool:
    """Whether a document begins like a sealed one."""
    return text.startswith(SEALED)


def seal_is_intact(text: bytes) -> bool:
    """Whether a sealed document matches its checksum."""
    rest = text[len(SEALED) + 8 :]
    return text[len(SEALED) : len(SEALED) + 8] == b"%08x" % check_of_bytes(rest)
