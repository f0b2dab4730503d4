"""Average the anchors of several epochs, as a target for a geometry."""

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import numpy as np
import numpy.typing as npt

from analyzers._engine.slices import slices
from analyzers.geometry.nonfinite_target import nonfinite_target
from trajstore.reading import target as targets
from trajstore.reading.accepts_path import accepts_path
from trajstore.reading.ranges import as_ranges
from trajstore.reading.run import Run
from trajstore.reading.target import Target

PART: Final = 1 << 22
"""Elements to average in one batch."""


@accepts_path
def average_of_epochs(
    run: Run, epochs: Sequence[int]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the mean of the stored anchors at the starts of the given epochs.

    Parameters
    ----------
    run : trajstore.Run
        As returned by `trajstore.open_run`.
    epochs : sequence of int
        The epochs to average, such as ``range(10, 21)``. An epoch given twice counts twice.

    Returns
    -------
    dict from str to numpy.ndarray
        Parameter tensors by name, float32, to pass as ``reference=``. Values are NaN where a
        chunk of the store is damaged.

    Raises
    ------
    KeyError
        If the run has no stored anchor at the start of an epoch; the message lists the
        epochs that have an anchor.
    ValueError
        If `epochs` is empty.

    Notes
    -----
    The function needs memory for one float32 vector of all parameters, and another 64 MB.
    Anchors other than keyframes are lossy copies of the iterates, with 8 bits per parameter.

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
    average = np.empty(run.layout.size, run.stored.anchors.dtype)
    for part in slices(slice(0, run.layout.size), PART):
        total = np.zeros(part.stop - part.start)
        for window in windows:
            total += run.stored.anchors.decode(window, part)
        average[part] = total / len(windows)
    return run.layout.unflatten(average)


def read_reference(text: str, run: Run, *, is_finite: bool = True) -> Target:
    """Read a target from the command line; a snapshot named `text` takes precedence."""
    # `is_finite` raises an error if the target is not finite.
    if text.startswith("mean:") and text not in run.snapshots:
        target = mean_target(run, _epochs(text))
    else:
        target = targets.find_target(run, targets.read_target(text, run))
    if is_finite and (problem := nonfinite_target(run, target)):
        raise ValueError(problem)
    return target


def mean_target(run: Run, epochs: range) -> Target:
    """Return the mean of the anchors at the starts of consecutive epochs as a target."""
    flat = run.layout.flatten(average_of_epochs(run, epochs))
    between = f"{epochs[0]}-{epochs[-1]}"
    return Target(
        label=f"mean of epochs {between}",
        note=f"the mean of the anchors at the starts of epochs {between}",
        identity=f"sha256 {sha256(flat.tobytes()).hexdigest()}",
        read=flat.__getitem__,
        values=flat,
    )


def _epochs(text: str) -> range:
    """Return the epochs of a text such as ``mean:10:20``, including both ends."""
    match = re.fullmatch(r"mean:(\d+):(\d+)", text)
    if not match or int(match[1]) > int(match[2]):
        raise ValueError(
            f"The reference {text!r} is not a mean of epochs; write mean:10:20 for the mean of "
            "epochs 10 to 20."
        )
    return range(int(match[1]), int(match[2]) + 1)
