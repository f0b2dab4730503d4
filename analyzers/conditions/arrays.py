"""Array functions for the alpha-beta and the Polyak-Lojasiewicz condition.

The alpha-beta condition restricts the pairs (alpha, beta) at every step k to a half-plane,
T_k = a_k - alpha c_k + beta d_k >= 0, with the terms of `Steps`. If d_k > 0, a line in
alpha bounds beta from below. The upper envelope of these lines is convex and piecewise
linear, and is computed exactly.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.intp]

MAX_VALUES: Final = 1 << 22
"""Largest number of values of T to keep in memory at a time."""

NO_STEP: Final = -1
"""Index of the half-plane beta >= 0, which belongs to no step."""


class Steps(NamedTuple):
    """Terms that define the half-plane of every step, each (step,)."""

    product: FloatArray  # a_k = <g_k, x_k - x*>
    excess: FloatArray  # c_k = l_k - r_k, the loss minus the loss of the batch at x*
    gap: FloatArray  # d_k = l_k - f*, at least max(`excess`, 0)


class Boundary(NamedTuple):
    """Lower boundary of the feasible pairs, given by its corners; arrays are (vertex,)."""

    alpha: FloatArray  # ascending; empty if no pair is feasible
    beta: FloatArray
    slope: FloatArray  # slope of the boundary to the right of the corner
    plane: IntArray  # step that bounds beta to the right, or NO_STEP
    limit: int  # step that bounds alpha; if no pair is feasible, the step that excludes all


def smallest_margin(
    steps: Steps, alpha: FloatArray, beta: FloatArray
) -> tuple[FloatArray, IntArray]:
    """Return the minimum of T_k over k and the minimising k, each (alpha, beta)."""
    margin = np.full((len(alpha), len(beta)), np.inf)
    step = np.zeros(margin.shape, np.intp)
    size = max(1, MAX_VALUES // max(1, len(beta)))
    for start in range(0, len(steps.product), size):
        a, c, d = (values[start : start + size] for values in steps)
        along_beta = beta[:, None] * d + a
        for i, alpha_i in enumerate(alpha):
            T = along_beta - alpha_i * c
            least = T.argmin(1)
            values = np.take_along_axis(T, least[:, None], 1)[:, 0]
            is_less = values < margin[i]
            margin[i, is_less] = values[is_less]
            step[i, is_less] = start + least[is_less]
    return margin, step


def feasible(steps: Steps, min_gap: float) -> Boundary:
    """Intersect the half-planes of all steps, beta >= 0, and alpha >= beta + `min_gap`."""
    # Feasible pairs lie between the boundary and the line beta = alpha - min_gap. Alpha has
    # no upper limit because gap >= max(excess, 0). `min_gap` must be at least 0.
    smallest, limit = _smallest_alpha(steps, min_gap)
    if not np.isfinite(smallest):
        empty = np.empty(0)
        return Boundary(empty, empty, empty, np.empty(0, np.intp), limit)
    is_line = steps.gap > 0
    a, c, d = (values[is_line] for values in steps)
    with np.errstate(over="ignore"):
        slopes, intercepts = np.append(c / d, 0.0), np.append(-a / d, 0.0)
    planes = np.append(np.flatnonzero(is_line), NO_STEP)
    lines, kinks = upper_envelope(slopes, intercepts)
    first = int(np.searchsorted(kinks, smallest, side="right"))
    lines, alpha = lines[first:], np.append(smallest, kinks[first:])
    beta = slopes[lines] * alpha + intercepts[lines]
    # Rounding must not move the first corner above the line beta = alpha - min_gap.
    beta[0] = min(beta[0], smallest - min_gap)
    return Boundary(alpha, np.maximum(beta, 0), slopes[lines], planes[lines], limit)


def largest_at_zero(alpha: FloatArray, plane: npt.NDArray[Any]) -> float:
    """Return the largest alpha with beta = 0, from the corners of the boundary; NaN without one."""
    # To the right of one corner at most, beta >= 0 is the bound, which belongs to no step.
    at_zero = np.flatnonzero(plane == NO_STEP)
    if not len(at_zero):
        return np.nan
    right = int(at_zero[0]) + 1
    return float(alpha[right]) if right < len(alpha) else np.inf


def _smallest_alpha(steps: Steps, min_gap: float) -> tuple[float, int]:
    """Return the smallest alpha with a feasible beta, and the step that bounds alpha."""
    # On beta = alpha - min_gap, T = a + alpha (d - c) - min_gap d, and d - c = r - f*.
    needed = min_gap * steps.gap - steps.product
    growth = steps.gap - steps.excess
    with np.errstate(divide="ignore", invalid="ignore"):
        least = needed / growth
    least = np.where(growth > 0, least, np.where(needed > 0, np.inf, -np.inf))
    limit = int(np.argmax(least)) if len(least) else NO_STEP
    if limit == NO_STEP or least[limit] <= min_gap:
        return min_gap, NO_STEP
    return float(least[limit]), limit


def upper_envelope(
    slopes: FloatArray, intercepts: FloatArray
) -> tuple[IntArray, FloatArray]:
    """Return the lines of the upper envelope from left to right, and its kinks."""
    # Expects at least one line. The kinks are ascending, one fewer than the lines returned.
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
    """Whether the middle line is nowhere above both the left and the right line."""
    to_right = (intercepts[left] - intercepts[right]) * (slopes[middle] - slopes[left])
    to_middle = (intercepts[left] - intercepts[middle]) * (slopes[right] - slopes[left])
    return bool(to_right <= to_middle)


def largest_mu(
    grad_norm: FloatArray, excess: FloatArray, delta: FloatArray
) -> FloatArray:
    """Return the largest mu that each step allows (step, delta), NaN where unbounded."""
    # A step bounds mu only if its loss exceeds f*.
    excess = np.where(excess > 0, excess, np.nan)[:, None]
    with np.errstate(divide="ignore", over="ignore"):
        mu = grad_norm[:, None] ** 2 / (2 * excess ** (2 / delta))
    return np.where(np.isfinite(mu), mu, np.nan)
