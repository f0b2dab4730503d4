"""Averages of iterates, as points to measure a run against."""

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from analyzers._engine.slices import slices
from trajstore.reading import target as reference_point
from trajstore.reading.ranges import as_ranges
from trajstore.reading.run import Run
from trajstore.reading.target import Reference

PART: Final = 1 << 22
"""Elements that are averaged at a time."""


def average_of_epochs(
    run: Run, epochs: Sequence[int]
) -> dict[str, npt.NDArray[np.float32]]:
    """Mean of the stored references at the starts of some epochs.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    epochs : sequence of int
        Which epochs, such as ``range(10, 21)``; each counts as often as it is given.

    Returns
    -------
    dict from str to numpy.ndarray
        Parameter tensors by name, float32, to be given as ``reference=``. NaN where a
        chunk is damaged.

    Raises
    ------
    KeyError
        If an epoch does not begin with a stored reference; lists those that do.
    ValueError
        If no epoch is given.

    Notes
    -----
    Memory: the vector of parameters, and 64 MB. The references are lossy codes of the
    iterates, in 8-bit steps.

    Examples
    --------
    >>> import analyzers, trajstore
    >>> run = trajstore.open_run(example_run)
    >>> average = analyzers.average_of_epochs(run, range(2, 5))
    >>> geometry = analyzers.path_geometry(run, reference=average)
    """
    if not len(epochs):
        raise ValueError("`epochs` names no epoch to average; give one or more.")
    if absent := sorted(set(epochs) - set(run.epoch_windows)):
        raise KeyError(
            f"No references at the start of epochs {as_ranges(absent)} in {run.location}; "
            f"there are those of these epochs: {as_ranges(run.epoch_windows) or 'none'}."
        )
    windows = sorted(run.epoch_windows[epoch] for epoch in epochs)
    average = np.empty(run.layout.size, np.float32)
    for part in slices(slice(0, run.layout.size), PART):
        total = np.zeros(part.stop - part.start)
        for window in windows:
            total += run.reference(window, part)
        average[part] = total / len(windows)
    return run.layout.unflatten(average)


def read_reference(text: str, run: Run) -> Reference:
    """Read a reference from the command line; names of snapshots come first."""
    if text.startswith("mean:") and text not in run.snapshots:
        return average_of_epochs(run, _epochs(text))
    return reference_point.read_reference(text, run)


def _epochs(text: str) -> range:
    """Read the epochs of ``mean:10:20``, both ends included."""
    found = re.fullmatch(r"mean:(\d+):(\d+)", text)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError(
            f"The reference {text!r} is no mean of epochs; write mean:10:20 for that of "
            "epochs 10 to 20."
        )
    return range(int(found[1]), int(found[2]) + 1)
