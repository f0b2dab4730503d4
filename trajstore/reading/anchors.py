"""Decode the anchors of windows; they equal the recorder's anchors bit for bit.

An anchor is stored as the coded difference from the anchor before it; every
`KEYFRAME_EVERY`-th anchor is stored in full.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import KEYFRAME_EVERY, KEYFRAMES
from trajstore.format.layout import BLOCK
from trajstore.sketch import deltas
from trajstore.store.chunks import ReadResult

FloatArray = npt.NDArray[np.floating[Any]]

CACHED_PARTS: Final = 16
"""Number of decoded parts to keep in memory; analyses decode parts of 16 MB."""


class Source(Protocol):
    """Store from which codes are read; see `trajstore.reading.stored_rows.StoredRows`."""

    def read(self, name: str, *part: slice) -> ReadResult:
        """Read a part of an array."""

    def rows(self, name: str, rows: slice) -> npt.NDArray[Any]:
        """Read rows of an array."""


class Anchors:
    """Anchors of a run's windows.

    They are decoded in parts: slices of the flat vector, whose blocks are read whole. Elements
    are NaN if a chunk of the anchor itself, or of an earlier anchor since the last keyframe,
    is damaged.
    """

    def __init__(self, source: Source, dtype: str = "float32") -> None:
        self._source = source
        self.dtype = np.dtype(dtype)
        """Type of the anchors."""

    def decode(self, window: int, elements: slice) -> FloatArray:
        """Return a part of an anchor, (element,), read-only; recent parts are cached."""
        first = elements.start // BLOCK * BLOCK
        blocks = self._decoded(window, first, -(-elements.stop // BLOCK) * BLOCK)
        return blocks[elements.start - first : elements.stop - first]

    def decode_each(
        self,
        windows: range,
        elements: slice,
        buffers: Sequence[FloatArray],
        moves: Sequence[FloatArray] = (),
    ) -> Iterator[FloatArray]:
        """Yield one part of successive anchors, written to two or more `buffers` in turn."""
        # Decoding begins with the last keyframe at or before the first window. The decoded
        # differences from the anchors before are written to `moves` in turn, if given.
        first = windows.start - windows.start % KEYFRAME_EVERY
        before = None
        for window in range(first, windows.stop):
            anchor = buffers[window % len(buffers)]
            moved = moves[window % len(moves)] if moves else None
            self._decode_after(before, window, elements, out=anchor, moved=moved)
            if window >= windows.start:
                yield anchor
            before = anchor

    @cached_property
    def _decoded(self) -> Callable[[int, int, int], FloatArray]:
        return lru_cache(maxsize=CACHED_PARTS)(self._decode)

    def _decode(self, window: int, start: int, stop: int) -> FloatArray:
        is_keyframe = window % KEYFRAME_EVERY == 0
        before = None if is_keyframe else self._decoded(window - 1, start, stop)
        anchor = np.empty(stop - start, self.dtype)
        self._decode_after(before, window, slice(start, stop), out=anchor)
        anchor.flags.writeable = False
        return anchor

    def _decode_after(
        self,
        before: FloatArray | None,
        window: int,
        elements: slice,
        *,
        out: FloatArray,
        moved: FloatArray | None = None,
    ) -> None:
        """Decode a part of an anchor, given the same part of the anchor before it."""
        keyframe, since = divmod(window, KEYFRAME_EVERY)
        if moved is not None and window == 0:
            moved[:] = 0
        if since == 0:
            row = slice(keyframe, keyframe + 1)
            out[:] = self._source.read(KEYFRAMES, row, elements).values[0]
            if moved is None or window == 0:
                return
            before, out = np.zeros_like(out), np.empty_like(out)
        assert before is not None
        row = slice(window, window + 1)
        codes = self._source.read("references/codes", row, elements)
        scales = self._source.rows("references/scales", row)[0]
        scales = scales[elements.start // BLOCK : elements.stop // BLOCK]
        deltas.move(before, codes.values[0], scales, out=out, difference=moved)
        if codes.missing is not None:
            out[codes.missing[0]] = np.nan
            if moved is not None:
                moved[codes.missing[0]] = np.nan
