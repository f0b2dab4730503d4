"""The vectors that matter in each window of a run, one window after the other.

A stored reference is a difference to the one before, so that windows are cheap in order
only: a sweep decodes every reference once, and keeps as many as a basis reaches back.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.format.layout import BLOCK, Layout
from trajstore.reading.run import Run
from trajstore.reading.target import Target

Float32Array = npt.NDArray[np.float32]

READ: Final = 1 << 22
"""Elements of an iterate that are read at once: whole chunks of the store."""

SEGMENT: Final = 1 << 15
"""Elements that are worked on at once: those of all vectors fit into a core's cache."""


class Around(NamedTuple):
    """Parts of the points that a window is measured with, float32 of shape (part,).

    Attributes
    ----------
    reference : numpy.ndarray
        The window's reference r.
    earlier : sequence of numpy.ndarray
        The references that the basis reaches back to.
    target : numpy.ndarray
        The point x*.
    end : numpy.ndarray
        Where the window ends: the next reference, or the last iterate.
    """

    reference: Float32Array
    earlier: Sequence[Float32Array]
    target: Float32Array
    end: Float32Array

    def vectors(self, part: slice, out: Float32Array) -> None:
        """Write a part of r, r less the earlier ones, x* - r and the end less r.

        Parameters
        ----------
        part : slice
            Part of the parts.
        out : numpy.ndarray
            float32, shape ``(basis + 2, part)``; without a basis r is left out, too.
        """
        reference = self.reference[part]
        if len(out) > 2:
            out[0] = reference
        for row, earlier in zip(out[1:], self.earlier, strict=False):
            np.subtract(reference, earlier[part], out=row)
        np.subtract(self.target[part], reference, out=out[-2])
        np.subtract(self.end[part], reference, out=out[-1])
        # Any known vector would do in its place; where the end is lost, none is as good.
        if not np.isfinite(out[-1] @ out[-1]):
            out[-1][~np.isfinite(out[-1])] = 0

    def cut(self, part: slice) -> "Around":
        """Return a part of everything."""
        return Around(
            self.reference[part],
            [earlier[part] for earlier in self.earlier],
            self.target[part],
            self.end[part],
        )


def past_windows(window: int, rank: int) -> list[int]:
    """Return the windows of the earlier references of a basis of `rank` vectors."""
    return [max(0, window - (1 << j)) for j in range(rank - 1)]


def sweep(
    run: Run, target: Target, windows: range, elements: slice
) -> Iterator[tuple[int, Around]]:
    """Go through windows in order.

    Parameters
    ----------
    run : Run
        The recorded run.
    target : Target
        The point x*.
    windows : range
        Which windows.
    elements : slice
        Part of the flat vector, between multiples of `BLOCK`.

    Yields
    ------
    window : int
        Which window.
    around : Around
        Its vectors over these elements.
    """
    rank, last = run.spec.basis, run.n_windows - 1
    x = read_vector(target.read, elements)
    first = min(past_windows(windows.start, rank), default=windows.start)
    until = min(windows.stop, last) + 1
    n = elements.stop - elements.start
    # Of the oldest window in use to the one that follows; made once, for memory that is
    # new costs more than what is computed in it.
    reach = 1 << max(0, rank - 2)
    buffers = [np.empty(n, np.float32) for _ in range(reach + 2)]
    decoded = run.stored.anchors.decode_each(range(first, until), elements, buffers)
    kept: dict[int, Float32Array] = {}
    for c in windows:
        for ahead in range(max(kept, default=first - 1) + 1, min(c + 1, last) + 1):
            kept[ahead] = next(decoded)
        past = past_windows(c, rank)
        end = kept[c + 1] if c < last else _end_of_run(run, kept[c], elements)
        yield c, Around(kept[c], [kept[p] for p in past], x, end)
        kept.pop(c - reach, None)


def read_vector(read: Callable[[slice], Float32Array], elements: slice) -> Float32Array:
    """Read a large part of a vector, a few chunks at a time."""
    values = np.empty(elements.stop - elements.start, np.float32)
    for part in slices(elements, READ):
        start = part.start - elements.start
        values[start : start + part.stop - part.start] = read(part)
    return values


def _end_of_run(run: Run, reference: Float32Array, elements: slice) -> Float32Array:
    if not run.has_final:
        return reference
    return read_vector(partial(run.stored.vector, "final"), elements)


def segments(layout: Layout, elements: slice) -> list[tuple[int, slice]]:
    """Cut a part of the flat vector at the borders of tensors, and into short pieces.

    Parameters
    ----------
    layout : Layout
        Where the tensors lie; the gap behind a tensor counts to it.
    elements : slice
        Which part.

    Returns
    -------
    list of (int, slice)
        Tensors, and where their pieces lie within the part.
    """
    ends = layout.offsets + BLOCK * layout.blocks
    pieces = []
    for layer, (offset, end) in enumerate(zip(layout.offsets, ends, strict=True)):
        first = max(int(offset), elements.start) - elements.start
        last = min(int(end), elements.stop) - elements.start
        pieces += [(layer, piece) for piece in slices(slice(first, last), SEGMENT)]
    return pieces


def slices(whole: slice, length: int) -> list[slice]:
    """Cut a slice into slices of one length, and a shorter one."""
    return [
        slice(i, min(i + length, whole.stop))
        for i in range(whole.start, whole.stop, length)
    ]
