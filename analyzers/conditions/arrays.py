"""Pairs (alpha, beta) that satisfy a T_k = a_k - alpha c_k + beta d_k >= 0 for every k.

With d_k > 0 each step bounds beta from below by a line in alpha; their upper envelope is
convex and piecewise linear, and found exactly.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.intp]

BLOCK: Final = 1 << 22
"""Values of T that are held at once."""

NO_PLANE: Final = -1
"""Stands for beta >= 0 in the place of the number of a step."""


class Steps(NamedTuple):
    """What the half-plane of every step is made of; all of shape ``(step,)``.

    Attributes
    ----------
    product : numpy.ndarray
        a_k = <g_k, x_k - x*>.
    excess : numpy.ndarray
        c_k = l_k - r_k, the loss less that of the same batch at x*.
    gap : numpy.ndarray
        d_k = l_k - f*, at least `excess` and 0.
    """

    product: FloatArray
    excess: FloatArray
    gap: FloatArray


class Boundary(NamedTuple):
    """The lower boundary of a set of pairs, from the smallest alpha on.

    Attributes
    ----------
    alpha, beta : numpy.ndarray
        Its corners, in ascending order of alpha, shape ``(vertex,)``; none if the set is
        empty.
    slope : numpy.ndarray
        Of the boundary to the right of each corner.
    plane : numpy.ndarray
        Which step the boundary belongs to there; `NO_PLANE` for beta >= 0.
    limit : int
        Which step alpha cannot be smaller for: of an empty set, one that no pair satisfies.
    """

    alpha: FloatArray
    beta: FloatArray
    slope: FloatArray
    plane: IntArray
    limit: int


def smallest_margin(
    steps: Steps, alpha: FloatArray, beta: FloatArray
) -> tuple[FloatArray, IntArray]:
    """Return min T_k over k, and the k, of shape ``(alpha, beta)``."""
    margin = np.full((len(alpha), len(beta)), np.inf)
    step = np.zeros(margin.shape, np.intp)
    size = max(1, BLOCK // max(1, len(beta)))
    for start in range(0, len(steps.product), size):
        a, c, d = (values[start : start + size] for values in steps)
        along_beta = beta[:, None] * d + a
        for i, one in enumerate(alpha):
            T = along_beta - one * c
            least = T.argmin(1)
            values = np.take_along_axis(T, least[:, None], 1)[:, 0]
            is_less = values < margin[i]
            margin[i, is_less] = values[is_less]
            step[i, is_less] = start + least[is_less]
    return margin, step


def feasible(steps: Steps, min_gap: float) -> Boundary:
    """Intersect all half-planes with beta >= 0 and alpha >= beta + min_gap.

    Parameters
    ----------
    steps : Steps
        With ``gap >= max(excess, 0)``: then the set has no upper end.
    min_gap : float
        At least 0.

    Returns
    -------
    Boundary
        Of all pairs from there upwards to ``beta = alpha - min_gap``.
    """
    smallest, limit = _smallest_alpha(steps, min_gap)
    if not np.isfinite(smallest):
        nothing = np.empty(0)
        return Boundary(nothing, nothing, nothing, np.empty(0, np.intp), limit)
    is_line = steps.gap > 0
    a, c, d = (values[is_line] for values in steps)
    with np.errstate(over="ignore"):
        slopes, intercepts = np.append(c / d, 0.0), np.append(-a / d, 0.0)
    planes = np.append(np.flatnonzero(is_line), NO_PLANE)
    lines, kinks = upper_envelope(slopes, intercepts)
    first = int(np.searchsorted(kinks, smallest, side="right"))
    lines, alpha = lines[first:], np.append(smallest, kinks[first:])
    beta = slopes[lines] * alpha + intercepts[lines]
    # Where the first corner is one with beta = alpha - min_gap, it is so exactly.
    beta[0] = min(beta[0], smallest - min_gap)
    return Boundary(alpha, np.maximum(beta, 0), slopes[lines], planes[lines], limit)


def _smallest_alpha(steps: Steps, min_gap: float) -> tuple[float, int]:
    """Return the smallest alpha for which some beta will do, and whose step it is."""
    # On beta = alpha - min_gap, T = a + alpha (d - c) - min_gap d, and d - c = r - f*.
    needed = min_gap * steps.gap - steps.product
    growth = steps.gap - steps.excess
    with np.errstate(divide="ignore", invalid="ignore"):
        least = needed / growth
    least = np.where(growth > 0, least, np.where(needed > 0, np.inf, -np.inf))
    limit = int(np.argmax(least)) if len(least) else NO_PLANE
    if limit == NO_PLANE or least[limit] <= min_gap:
        return min_gap, NO_PLANE
    return float(least[limit]), limit


def upper_envelope(
    slopes: FloatArray, intercepts: FloatArray
) -> tuple[IntArray, FloatArray]:
    """Find the largest of some lines, everywhere.

    Parameters
    ----------
    slopes, intercepts : numpy.ndarray
        Shape ``(line,)``, at least one line.

    Returns
    -------
    lines : numpy.ndarray
        Numbers of the lines that are the largest somewhere, from left to right.
    kinks : numpy.ndarray
        Where one hands over to the next, ascending; one less than there are lines.
    """
    order = np.lexsort((intercepts, slopes))
    order = order[np.append(np.diff(slopes[order]) > 0, True)]
    kept: list[int] = []
    for line in order.tolist():
        while len(kept) > 1 and _is_below(slopes, intercepts, kept[-2], kept[-1], line):
            kept.pop()
        kept.append(line)
    lines = np.array(kept)
    kinks = -np.diff(intercepts[lines]) / np.diff(slopes[lines])
    return lines, kinks


def _is_below(
    slopes: FloatArray, intercepts: FloatArray, left: int, middle: int, right: int
) -> bool:
    """Whether a line is nowhere above two others, of a smaller and of a larger slope."""
    to_right = (intercepts[left] - intercepts[right]) * (slopes[middle] - slopes[left])
    to_middle = (intercepts[left] - intercepts[middle]) * (slopes[right] - slopes[left])
    return bool(to_right <= to_middle)
