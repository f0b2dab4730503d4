"""Decode the anchors of windows; they equal the recorder's anchors bit for bit.

An anchor is stored as the coded difference from the anchor before it; every
`KEYFRAME_EVERY`-th anchor is stored in full.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from trajstore.format.arrays import KEYFRAME_EVERY, KEYFRAMES
from trajstore.format.layout import BLOCK
from trajstore.sketch import deltas
from trajstore.store.chunks import ReadResult

FloatArray = npt.NDArray[np.floating[Any]]

CACHED_PARTS: Final = 16
"""Number of decoded parts to keep in memory; analyses decode parts of 16 MB."""


READ_AHEAD: Final = 1 << 22
"""Largest number of codes, or of elements of a keyframe, to read at once: a request costs more than
decoding a small chunk."""


class Codes(NamedTuple):
    """A part of the coded difference of an anchor from the anchor before it."""

    values: npt.NDArray[np.int8]  # (element,)
    scales: npt.NDArray[np.float32]  # (block,)
    missing: npt.NDArray[np.bool_] | None  # mask of lost elements, (element,)


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
        every = range(first, windows.stop)
        codes = self._codes(every, elements, with_keyframes=bool(moves))
        for window, code in zip(every, codes, strict=True):
            anchor = buffers[window % len(buffers)]
            moved = moves[window % len(moves)] if moves else None
            self._decode_after(before, window, elements, code, out=anchor, moved=moved)
            if window >= windows.start:
                yield anchor
            before = anchor

    @cached_property
    def _decoded(self) -> Callable[[int, int, int], FloatArray]:
        return lru_cache(maxsize=CACHED_PARTS)(self._decode)

    def _decode(self, window: int, start: int, stop: int) -> FloatArray:
        is_keyframe = window % KEYFRAME_EVERY == 0
        before = None if is_keyframe else self._decoded(window - 1, start, stop)
        anchor, elements = np.empty(stop - start, self.dtype), slice(start, stop)
        [code] = self._codes(range(window, window + 1), elements, with_keyframes=False)
        self._decode_after(before, window, elements, code, out=anchor)
        anchor.flags.writeable = False
        return anchor

    def _codes(
        self, windows: range, elements: slice, *, with_keyframes: bool
    ) -> Iterator[Codes | None]:
        """Yield the codes of successive windows, several windows per read; None if not needed."""
        blocks = slice(elements.start // BLOCK, elements.stop // BLOCK)
        most = max(1, READ_AHEAD // max(1, elements.stop - elements.start))
        rows = slice(windows.start, windows.start)
        while rows.stop < windows.stop:
            keyframe, since = divmod(rows.stop, KEYFRAME_EVERY)
            if since == 0 and not (with_keyframes and keyframe > 0):
                rows = slice(rows.stop, rows.stop + 1)
                yield None
                continue
            until = min(windows.stop, (keyframe + 1) * KEYFRAME_EVERY)
            rows = slice(rows.stop, min(rows.stop + most, until))
            codes, missing, _ = self._source.read("references/codes", rows, elements)
            scales = self._source.rows("references/scales", rows)[:, blocks]
            for i in range(len(codes)):
                yield Codes(
                    codes[i], scales[i], None if missing is None else missing[i]
                )

    def _decode_after(
        self,
        before: FloatArray | None,
        window: int,
        elements: slice,
        code: Codes | None,
        *,
        out: FloatArray,
        moved: FloatArray | None = None,
    ) -> None:
        """Decode a part of an anchor, given the same part of the anchor before it."""
        keyframe, since = divmod(window, KEYFRAME_EVERY)
        if moved is not None and window == 0:
            moved[:] = 0
        if since == 0:
            self._read_keyframe(keyframe, elements, out)
            if moved is None or window == 0:
                return
        assert code is not None
        codes, scales, missing = code
        if since == 0:
            assert moved is not None
            deltas.write_decoded(codes, scales, moved)
        else:
            assert before is not None
            deltas.move(before, codes, scales, out=out, difference=moved)
        if missing is not None:
            if since > 0:
                out[missing] = np.nan
            if moved is not None:
                moved[missing] = np.nan

    def _read_keyframe(self, number: int, elements: slice, out: FloatArray) -> None:
        """Read a part of an anchor that is stored in full, a few chunks at a time."""
        row = slice(number, number + 1)
        for start in range(elements.start, elements.stop, READ_AHEAD):
            part = slice(start, min(start + READ_AHEAD, elements.stop))
            place = slice(part.start - elements.start, part.stop - elements.start)
            out[place] = self._source.read(KEYFRAMES, row, part).values[0]
