"""Walk through the windows of a run in order, and yield the vectors of each window.

An anchor is stored as its difference from the previous anchor, so only sequential reading
is cheap: a walk decodes every anchor once, and keeps those that the basis still needs.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.slices import slices
from trajstore.reading.run import Run
from trajstore.reading.target import Target

Float32Array = npt.NDArray[np.float32]

READ_ELEMENTS: Final = 1 << 22
"""Elements of a vector to read in one batch: whole chunks of the store."""


class WindowVectors(NamedTuple):
    """Vectors of a window over a range of elements, each (element,).

    All have the type of the anchors, float32 or float64.
    """

    anchor: Float32Array
    past: Sequence[Float32Array]  # earlier anchors that the basis contains
    target: Float32Array
    end: Float32Array  # the next anchor, or the last iterate in the last window

    def write(self, part: slice, out: Float32Array) -> None:
        """Write the basis, target - anchor and end - anchor to `out`, (basis + 2, part)."""
        # The basis consists of the anchor and its displacements from earlier anchors. An
        # empty basis lacks the anchor as well.
        anchor = self.anchor[part]
        if len(out) > 2:
            out[0] = anchor
        for row, past in zip(out[1:], self.past, strict=False):
            np.subtract(anchor, past[part], out=row)
        np.subtract(self.target[part], anchor, out=out[-2])
        np.subtract(self.end[part], anchor, out=out[-1])
        # Damaged elements of end - anchor may be replaced by any known numbers, such as 0.
        if not np.isfinite(out[-1] @ out[-1]):
            out[-1][~np.isfinite(out[-1])] = 0

    def cut(self, part: slice) -> "WindowVectors":
        """Return a part of every vector."""
        return WindowVectors(
            self.anchor[part],
            [past[part] for past in self.past],
            self.target[part],
            self.end[part],
        )


def past_windows(window: int, rank: int) -> list[int]:
    """Return the windows of the earlier anchors in a basis of `rank` vectors."""
    return [max(0, window - (1 << j)) for j in range(rank - 1)]


def walk(
    run: Run, target: Target, windows: range, elements: slice
) -> Iterator[tuple[int, WindowVectors]]:
    """Yield each window with its vectors over `elements`, which covers whole blocks."""
    rank, last = run.spec.basis, run.n_windows - 1
    x = read_vector(target.read, elements)
    first = min(past_windows(windows.start, rank), default=windows.start)
    until = min(windows.stop, last) + 1
    n = elements.stop - elements.start
    # The buffers hold the anchors of consecutive windows: from the oldest window that the
    # basis uses to the window after the current one. They are allocated once, because
    # touching new memory costs more than the arithmetic.
    reach = 1 << max(0, rank - 2)
    buffers = [np.empty(n, run.stored.anchors.dtype) for _ in range(reach + 2)]
    decoded = run.stored.anchors.decode_each(range(first, until), elements, buffers)
    kept: dict[int, Float32Array] = {}
    for c in windows:
        for ahead in range(max(kept, default=first - 1) + 1, min(c + 1, last) + 1):
            kept[ahead] = next(decoded)
        past = [kept[p] for p in past_windows(c, rank)]
        end = kept[c + 1] if c < last else _end_of_run(run, kept[c], elements)
        yield c, WindowVectors(kept[c], past, x, end)
        kept.pop(c - reach, None)


def window_steps(run: Run, steps: slice) -> dict[int, slice]:
    """Return the part of `steps` that lies in each window, by window."""
    starts, stops = run.windows["start"].values, run.windows["stop"].values
    first = int(np.searchsorted(stops, steps.start, side="right"))
    last = int(np.searchsorted(starts, steps.stop, side="left"))
    parts = {
        c: slice(max(int(starts[c]), steps.start), min(int(stops[c]), steps.stop))
        for c in range(first, last)
    }
    return {c: part for c, part in parts.items() if part.start < part.stop}


def read_vector(read: Callable[[slice], Float32Array], elements: slice) -> Float32Array:
    """Read a large part of a vector, a few chunks at a time."""
    parts = [read(part) for part in slices(elements, READ_ELEMENTS)]
    return parts[0].copy() if len(parts) == 1 else np.concatenate(parts)


def _end_of_run(run: Run, anchor: Float32Array, elements: slice) -> Float32Array:
    if not run.has_final:
        return anchor
    return read_vector(partial(run.stored.vector, "final"), elements)
