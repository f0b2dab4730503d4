"""List and read the iterates that a run keeps whole: anchors, snapshots and the final one.

A run recorded with ``exact=True`` keeps the iterates of all steps.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.float32]

Kind = Literal["anchor", "snapshot", "step", "final"]


class StoredIterate(NamedTuple):
    """A whole iterate in a store."""

    step: int  # number of optimizer steps before it
    epoch: int  # -1 if it is lost
    kind: Kind
    window: int = -1  # window of an anchor or of a step of an exact run
    array: str = ""  # path of the array of a snapshot or of the final iterate


def stored_iterates(run: Run, steps: Iterable[int] = ()) -> list[StoredIterate]:
    """Return the anchors, snapshots, given steps of an exact run, and the final iterate."""
    # They are in the order of their steps; at the same step, in the order above.
    listed = [
        StoredIterate(int(start), epoch_of(run, int(start)), "anchor", window=c)
        for c, start in enumerate(run.stored.starts)
    ]
    listed += [
        StoredIterate(s.step, epoch_of(run, s.step), "snapshot", array=s.array)
        for s in run.stored.document.snapshots.values()
    ]
    if run.spec.exact:
        windows = run.stored.rows("window", slice(0, run.n_steps))
        listed += [
            StoredIterate(k, epoch_of(run, k), "step", window=int(windows[k]))
            for k in steps
            if k < run.n_steps
        ]
    listed.sort(key=lambda iterate: iterate.step)
    if run.has_final:
        step = run.n_steps
        listed.append(StoredIterate(step, epoch_of(run, step), "final", array="final"))
    return listed


def epoch_of(run: Run, step: int) -> int:
    """Return the epoch of the iterate before a step; after the last step, the last epoch."""
    if not run.n_steps:
        return 0
    return int(run.stored.epochs[min(step, run.n_steps - 1)])


def read_iterates(
    run: Run, iterates: Sequence[StoredIterate], elements: slice
) -> Iterator[FloatArray]:
    """Yield a part of each of `stored_iterates`, float32 (element,); buffers are shared."""
    # Anchors are decoded one after the other, each into one of two buffers.
    buffers = np.empty((2, elements.stop - elements.start), np.float32)
    decoded = run.stored.anchors.decode_each(range(run.n_windows), elements, [*buffers])
    anchors: dict[int, FloatArray] = {}
    for iterate in iterates:
        match iterate.kind:
            case "anchor":
                anchors = {iterate.window: next(decoded)}
                yield anchors[iterate.window]
            case "step":
                row = slice(iterate.step, iterate.step + 1)
                displacement = run.stored.large_rows("displacement", row, elements)[0]
                yield anchors[iterate.window] + displacement
            case _:
                yield run.stored.vector(iterate.array, elements)
