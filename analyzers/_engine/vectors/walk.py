"""Walk through the windows of a run in order, and yield the vectors of each window.

An anchor is stored as its difference from the previous anchor, so only sequential reading
is cheap: a walk decodes every anchor once, and keeps those that the basis still needs.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.slices import slices
from trajstore.reading.run import Run
from trajstore.reading.target import Target
from trajstore.sketch.deltas import n_codes

FloatArray = npt.NDArray[np.floating[Any]]

READ_ELEMENTS: Final = 1 << 22
"""Elements of a vector to read in one batch: whole chunks of the store."""


class WindowVectors(NamedTuple):
    """Vectors of a window over a range of elements, each (element,).

    The anchor and the target have the type of the anchors, float32 or float64.
    """

    anchor: FloatArray
    moves: Sequence[FloatArray]  # latest decoded differences of anchors, latest first
    target: FloatArray
    # Displacement from the anchor to the next anchor, or to the last iterate in the last window.
    advance: FloatArray

    def write(self, part: slice, out: FloatArray) -> None:
        """Write the basis, target - anchor and the advance to `out`, (basis + 2, part)."""
        self.write_known(part, out[:-1])
        out[-1] = self.advance[part]
        # Damaged elements of the advance may be replaced by any known numbers, such as 0.
        if not np.isfinite(out[-1] @ out[-1]):
            out[-1][~np.isfinite(out[-1])] = 0

    def write_known(self, part: slice, out: FloatArray) -> None:
        """Write the basis and target - anchor to `out`, (basis + 1, part)."""
        # The basis consists of the anchor and its displacements from the anchors 1, 2, 4, ...
        # windows earlier. An empty basis lacks the anchor as well. Displacements are sums of
        # decoded differences, as in the recorder: the anchors themselves are rounded. They are added
        # in the type of the anchors, whatever the type of `out`.
        anchor, rank = self.anchor[part], len(out) - 1
        if rank > 0:
            out[0] = anchor
        for j in range(rank - 1):
            earlier = [move[part] for move in self.moves[(1 << j) >> 1 : 1 << j]]
            terms = [out[j], *earlier] if j > 0 else earlier
            _sum(terms, out=out[j + 1], dtype=anchor.dtype)
        np.subtract(self.target[part], anchor, out=out[-1], dtype=out.dtype)

    def cut(self, part: slice) -> "WindowVectors":
        """Return a part of every vector."""
        return WindowVectors(
            self.anchor[part],
            [move[part] for move in self.moves],
            self.target[part],
            self.advance[part],
        )


def past_windows(window: int, rank: int) -> list[int]:
    """Return the windows of the earlier anchors in a basis of `rank` vectors."""
    return [max(0, window - (1 << j)) for j in range(rank - 1)]


def walk(
    run: Run, target: Target, windows: range, elements: slice
) -> Iterator[tuple[int, WindowVectors]]:
    """Yield each window with its vectors over `elements`, which covers whole blocks."""
    n_moves, last = n_codes(run.spec.basis), run.n_windows - 1
    x = read_vector(target.read, elements)
    if not target.is_reported and not np.isfinite(x).all():
        _warn_of(target, run)
    first = max(0, windows.start - max(0, n_moves - 1))
    until = min(windows.stop, last) + 1
    n = elements.stop - elements.start
    # One window is decoded ahead. Buffers are allocated once, because touching new memory costs
    # more than the arithmetic.
    dtype = run.stored.anchors.dtype
    buffers = [np.empty(n, dtype) for _ in range(2)]
    moves = [np.empty(n, np.float32) for _ in range(n_moves + 1)]
    decoded = run.stored.anchors.decode_each(
        range(first, until), elements, buffers, moves
    )
    kept: dict[int, FloatArray] = {}
    ahead = first
    for c in windows:
        while ahead <= min(c + 1, last):
            kept[ahead] = next(decoded)
            ahead += 1
        if c < last:
            advance = moves[(c + 1) % len(moves)]
        else:
            advance = _last_advance(run, kept[c], elements)
        recent = range(c, max(c - n_moves, 0), -1)
        latest = [moves[w % len(moves)] for w in recent]
        yield c, WindowVectors(kept.pop(c), latest, x, advance)


def _warn_of(target: Target, run: Run) -> None:
    """Warn that results are NaN because of the target."""
    warnings.warn(
        f"{run.location}: the target, {target.label!r}, is not finite: the run diverged before, "
        "or the target is damaged. Results relative to it are NaN. Choose another target with "
        "reference=, such as an earlier epoch or a snapshot.",
        UserWarning,
        stacklevel=2,
    )


def window_steps(run: Run, steps: slice) -> dict[int, slice]:
    """Return the part of `steps` that lies in each window, by window."""
    starts, stops = (
        run.windows.variables["start"].values,
        run.windows.variables["stop"].values,
    )
    first = int(np.searchsorted(stops, steps.start, side="right"))
    last = int(np.searchsorted(starts, steps.stop, side="left"))
    parts = {
        c: slice(max(int(starts[c]), steps.start), min(int(stops[c]), steps.stop))
        for c in range(first, last)
    }
    return {c: part for c, part in parts.items() if part.start < part.stop}


def read_vector(read: Callable[[slice], FloatArray], elements: slice) -> FloatArray:
    """Read a large part of a vector, a few chunks at a time."""
    out = np.empty(0, np.float32)
    for part in slices(elements, READ_ELEMENTS):
        values = read(part)
        if not len(out):
            out = np.empty(elements.stop - elements.start, values.dtype)
        out[part.start - elements.start : part.stop - elements.start] = values
    return out


def _last_advance(run: Run, anchor: FloatArray, elements: slice) -> FloatArray:
    """Return the displacement from the last anchor to the end of the run."""
    if not run.has_final:
        return anchor - anchor
    advance = read_vector(partial(run.stored.vector, "final"), elements)
    advance -= anchor
    return advance


def _sum(terms: Sequence[FloatArray], out: FloatArray, dtype: npt.DTypeLike) -> None:
    """Write the sum of vectors, added in turn in a type, to `out`; 0 without terms."""
    if len(terms) < 2:
        out[:] = terms[0] if terms else 0
        return
    np.add(terms[0], terms[1], out=out, dtype=dtype)
    for term in terms[2:]:
        np.add(out, term, out=out, dtype=dtype, casting="same_kind")
