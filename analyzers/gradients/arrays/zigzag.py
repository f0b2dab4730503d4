"""Adjacent gradients that point against each other, and parts of a path where they do."""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

ROWS: Final = 1 << 16
"""Steps whose windows are sorted at once."""

ZIGZAG, NEITHER, SMOOTH = -1, 0, 1
KINDS: Final = {ZIGZAG: "zigzag", NEITHER: "neither", SMOOTH: "smooth"}
"""Labels of steps, and their names."""


class Segments(NamedTuple):
    """Parts of a path of one kind each, one after the other.

    Attributes
    ----------
    start, stop : numpy.ndarray
        First step, and the one after the last, int64 of shape ``(segment,)``.
    kind : numpy.ndarray
        A key of `KINDS`, int8 of shape ``(segment,)``.
    """

    start: IntArray
    stop: IntArray
    kind: IntArray


def running_median(values: FloatArray, window: int) -> FloatArray:
    """Median of what lies around every value.

    Parameters
    ----------
    values : numpy.ndarray
        Shape ``(step,)``. NaN are left out.
    window : int
        How many values, odd; fewer at both ends.

    Returns
    -------
    numpy.ndarray
        Shape ``(step,)``, float64. NaN where a window holds no value.
    """
    padded = np.pad(values.astype(np.float64), window // 2, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)
    parts = [_medians(windows[k : k + ROWS]) for k in range(0, len(windows), ROWS)]
    return np.concatenate(parts)


def _medians(windows: FloatArray) -> FloatArray:
    """Medians of rows; NaN are sorted to their ends."""
    ordered = np.sort(windows, axis=1)
    n = np.isfinite(ordered).sum(1)
    row = np.arange(len(ordered))
    # Both are the middle one of an odd number; without any value they are NaN.
    low, high = np.maximum(n - 1, 0) // 2, np.minimum(n // 2, ordered.shape[1] - 1)
    medians: FloatArray = (ordered[row, low] + ordered[row, high]) / 2
    return medians


def step_kinds(running: FloatArray, threshold: float) -> IntArray:
    """Label steps by the running median of their cosines.

    Parameters
    ----------
    running : numpy.ndarray
        Shape ``(step,)``.
    threshold : float
        Beyond which a median is one of zigzag, if negative, or smooth.

    Returns
    -------
    numpy.ndarray
        Keys of `KINDS`, int8 of shape ``(step,)``; `NEITHER` where the median is NaN.
    """
    kinds = np.where(running < -threshold, ZIGZAG, NEITHER)
    return np.where(running > threshold, SMOOTH, kinds).astype(np.int8)


def find_segments(kinds: IntArray) -> Segments:
    """Join neighbouring steps of the same kind.

    Parameters
    ----------
    kinds : numpy.ndarray
        Shape ``(step,)``, at least one step.

    Returns
    -------
    Segments
        They cover all steps.
    """
    borders = np.flatnonzero(np.diff(kinds)) + 1
    start = np.concatenate([[0], borders])
    stop = np.concatenate([borders, [len(kinds)]])
    return Segments(start, stop, kinds[start])


def part_percentiles(
    values: FloatArray, percentile: float, *, n_parts: int
) -> FloatArray:
    """Take a percentile in parts of equally many steps.

    Parameters
    ----------
    values : numpy.ndarray
        Shape ``(step,)``. NaN are left out.
    percentile : float
        From 0 to 100.
    n_parts : int
        How many parts; where there are fewer steps, the last ones are empty.

    Returns
    -------
    numpy.ndarray
        Shape ``(part,)``, NaN for parts without a value.
    """
    parts = [part[np.isfinite(part)] for part in np.array_split(values, n_parts)]
    return np.array([np.percentile(p, percentile) if len(p) else np.nan for p in parts])
