"""Average the anchors of some epochs, as a target to measure a run against."""

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from analyzers._engine.slices import slices
from trajstore.reading import target as targets
from trajstore.reading.ranges import as_ranges
from trajstore.reading.run import Run
from trajstore.reading.target import TargetLike

PART: Final = 1 << 22
"""Elements to average at once."""


def average_of_epochs(
    run: Run, epochs: Sequence[int]
) -> dict[str, npt.NDArray[np.float32]]:
    """Mean of the stored anchors at the starts of some epochs.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    epochs : sequence of int
        Such as ``range(10, 21)``. A repeated epoch counts repeatedly.

    Returns
    -------
    dict from str to numpy.ndarray
        Parameter tensors by name, float32, to pass as ``reference=``. NaN where a chunk is
        damaged.

    Raises
    ------
    KeyError
        If an epoch does not begin with a stored anchor; lists the epochs that do.
    ValueError
        If no epoch is given.

    Notes
    -----
    Memory: the vector of parameters, and 64 MB. Anchors are lossy codes of the iterates, in
    8-bit steps.

    Examples
    --------
    >>> import analyzers, trajstore
    >>> run = trajstore.open_run(example_run)
    >>> average = analyzers.average_of_epochs(run, range(2, 5))
    >>> geometry = analyzers.path_geometry(run, reference=average)
    """
    if not len(epochs):
        raise ValueError("`epochs` names no epoch to average; give one or more.")
    if absent := sorted(set(epochs) - set(run.stored.epoch_windows)):
        raise KeyError(
            f"No stored anchors at the start of epochs {as_ranges(absent)} in "
            f"{run.location}; it has anchors for epochs "
            f"{as_ranges(run.stored.epoch_windows) or 'none'}."
        )
    windows = sorted(run.stored.epoch_windows[epoch] for epoch in epochs)
    average = np.empty(run.layout.size, np.float32)
    for part in slices(slice(0, run.layout.size), PART):
        total = np.zeros(part.stop - part.start)
        for window in windows:
            total += run.stored.anchors.decode(window, part)
        average[part] = total / len(windows)
    return run.layout.unflatten(average)


def read_reference(text: str, run: Run) -> TargetLike:
    """Read a target from the command line; names of snapshots come first."""
    if text.startswith("mean:") and text not in run.snapshots:
        return average_of_epochs(run, _epochs(text))
    return targets.read_target(text, run)


def _epochs(text: str) -> range:
    """Read the epochs of ``mean:10:20``, both ends included."""
    found = re.fullmatch(r"mean:(\d+):(\d+)", text)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError(
            f"The reference {text!r} is not a mean of epochs; write mean:10:20 for the mean of "
            "epochs 10 to 20."
        )
    return range(int(found[1]), int(found[2]) + 1)
