"""List and read the iterates that a run keeps whole: anchors, snapshots and the final one."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.float32]

Kind = Literal["anchor", "snapshot", "final"]


class StoredIterate(NamedTuple):
    """A whole iterate in a store."""

    step: int  # number of optimizer steps before it
    epoch: int  # -1 if it is lost
    kind: Kind
    window: int  # window of an anchor, otherwise -1
    array: (
        str  # path of the array of a snapshot or of the final iterate, otherwise empty
    )


def stored_iterates(run: Run) -> list[StoredIterate]:
    """Return the whole iterates of a run by step; anchors come before other iterates."""
    # Several windows start at the same step if a recording was resumed there; the last of
    # their anchors is the one that steps refer to.
    window_of = {int(start): c for c, start in enumerate(run.stored.starts)}
    listed = [
        StoredIterate(step, epoch_of(run, step), "anchor", c, "")
        for step, c in window_of.items()
    ]
    listed += [
        StoredIterate(s.step, epoch_of(run, s.step), "snapshot", -1, s.array)
        for s in run.stored.document.snapshots.values()
    ]
    listed.sort(key=lambda iterate: iterate.step)
    if run.has_final:
        step = run.n_steps
        listed.append(StoredIterate(step, epoch_of(run, step), "final", -1, "final"))
    return listed


def epoch_of(run: Run, step: int) -> int:
    """Return the epoch of the iterate before a step; after the last step, the last epoch."""
    if not run.n_steps:
        return 0
    return int(run.stored.epochs[min(step, run.n_steps - 1)])


def read_iterates(
    run: Run, iterates: Sequence[StoredIterate], elements: slice
) -> Iterator[FloatArray]:
    """Yield a part of each iterate, float32 (element,); anchors share two buffers."""
    # `iterates` are in the order of `stored_iterates`; anchors are decoded one after the other.
    windows = [iterate.window for iterate in iterates if iterate.kind == "anchor"]
    buffers = np.empty((2, elements.stop - elements.start), np.float32)
    every = range(windows[0], windows[-1] + 1) if windows else range(0)
    decoded = zip(
        every, run.stored.anchors.decode_each(every, elements, [*buffers]), strict=True
    )
    for iterate in iterates:
        if iterate.kind != "anchor":
            yield run.stored.vector(iterate.array, elements)
            continue
        for window, anchor in decoded:
            if window == iterate.window:
                yield anchor
                break
