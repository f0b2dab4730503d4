"""Cut a path into segments by kind; split its length and decrease in loss among kinds."""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.geometry import Estimate

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

ROWS: Final = 1 << 16
"""Windows of the running median to sort in one batch."""

ZIGZAG, NEITHER, SMOOTH = -1, 0, 1
KINDS: Final = {ZIGZAG: "zigzag", NEITHER: "neither", SMOOTH: "smooth"}
"""Kinds of steps, and their names."""


class Segments(NamedTuple):
    """Consecutive segments of a path, each of one kind, that cover all steps."""

    start: IntArray  # first step of each segment, int64 (segment,)
    stop: IntArray  # first step after each segment, int64 (segment,)
    kind: IntArray  # kind of each segment, a key of `KINDS`, int8 (segment,)


def running_median(values: FloatArray, window: int) -> FloatArray:
    """Return medians over an odd `window`, shorter at the ends, float64 (step,)."""
    # NaN values are ignored; the median is NaN where all values of a window are NaN.
    padded = np.pad(values.astype(np.float64), window // 2, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)
    parts = [_medians(windows[k : k + ROWS]) for k in range(0, len(windows), ROWS)]
    return np.concatenate(parts)


def _medians(windows: FloatArray) -> FloatArray:
    """Return the median of each row, ignoring NaN."""
    # NaN sorts to the end of a row.
    ordered = np.sort(windows, axis=1)
    n = np.isfinite(ordered).sum(1)
    row = np.arange(len(ordered))
    # `low` equals `high` for an odd number of values. In a row of NaN both point to a NaN.
    low, high = np.maximum(n - 1, 0) // 2, np.minimum(n // 2, ordered.shape[1] - 1)
    medians: FloatArray = (ordered[row, low] + ordered[row, high]) / 2
    return medians


def step_kinds(running: FloatArray, threshold: float) -> IntArray:
    """Return the kind of each step from its running median, int8 (step,)."""
    # Steps with a median of NaN are `NEITHER`.
    kinds = np.where(running < -threshold, ZIGZAG, NEITHER)
    return np.where(running > threshold, SMOOTH, kinds).astype(np.int8)


def find_segments(kinds: IntArray) -> Segments:
    """Join neighbouring steps of the same kind; `kinds` must not be empty."""
    borders = np.flatnonzero(np.diff(kinds)) + 1
    start = np.concatenate([[0], borders])
    stop = np.concatenate([borders, [len(kinds)]])
    return Segments(start, stop, kinds[start])


def part_percentiles(
    values: FloatArray, percentile: float, *, n_parts: int
) -> FloatArray:
    """Return a percentile of each of `n_parts` parts of equal length, (part,)."""
    # NaN values are ignored. With fewer steps than parts, the last parts are empty and NaN.
    parts = [part[np.isfinite(part)] for part in np.array_split(values, n_parts)]
    return np.array([np.percentile(p, percentile) if len(p) else np.nan for p in parts])


def running_mean(values: FloatArray, window: int) -> FloatArray:
    """Return means over an odd `window`, shorter at the ends, float64 (..., step)."""
    # NaN values are ignored; the mean is NaN where all values of a window are NaN.
    is_known = np.isfinite(values)
    n = _running_sum(is_known.astype(np.float64), window)
    sums = _running_sum(np.where(is_known, values, 0.0), window)
    means = np.full(sums.shape, np.nan)
    np.divide(sums, n, out=means, where=n > 0.5)
    return means


def _running_sum(values: FloatArray, window: int) -> FloatArray:
    if window == 1:
        return values.astype(np.float64)
    half, n = window // 2, values.shape[-1]
    zeros = np.zeros((*values.shape[:-1], 1))
    totals = np.concatenate([zeros, np.cumsum(values, axis=-1, dtype=np.float64)], -1)
    step = np.arange(n)
    ends = np.minimum(step + half + 1, n), np.maximum(step - half, 0)
    sums: FloatArray = totals[..., ends[0]] - totals[..., ends[1]]
    return sums


def sums_by_kind(values: FloatArray, kinds: IntArray) -> FloatArray:
    """Sum the values over the steps of each kind, ignoring NaN, (kind,)."""
    return np.array([np.nansum(values[kinds == kind]) for kind in KINDS])


def border_signs(segments: Segments) -> FloatArray:
    """Return signs that turn a sum over steps into a decrease by kind, (kind, step)."""
    # The sum of signs times values is the decrease within the segments of a kind. A sign is
    # 1 at the first step of a segment, and -1 at the first step after the segment, or at the
    # last step of the path. Kinds are in the order of `KINDS`.
    n = int(segments.stop[-1])
    ends = np.minimum(segments.stop, n - 1)
    signs = np.zeros((len(KINDS), n))
    for row, kind in zip(signs, KINDS, strict=True):
        is_kind = segments.kind == kind
        np.add.at(row, segments.start[is_kind], 1.0)
        np.add.at(row, ends[is_kind], -1.0)
    return signs


def loss_decrease(
    losses: FloatArray, signs: FloatArray, window: int
) -> tuple[Estimate, Estimate]:
    """Return the decrease of a smoothed loss by kind, and shares of the total, (kind,)."""
    # Let c be `signs`, from `border_signs`, and S the running mean of the losses L over an
    # odd `window` (1 for losses without noise). The decrease of a kind is linear in the
    # losses: sum_k c_k S_k = sum_j w_j L_j. If loss j has the variance s_j^2 around the
    # running mean, the decrease has the variance sum_j w_j^2 s_j^2. Let q be the share of the
    # kind in the total decrease D = sum_j t_j L_j. To first order q has the variance
    # sum_j (w_j - q t_j)^2 s_j^2 / D^2. Results are NaN if a border has no known loss near it.
    smooth = running_mean(losses, window)
    is_border = signs != 0
    decrease = np.where(is_border, signs * smooth, 0.0).sum(1)
    is_known = np.isfinite(losses)
    n = _running_sum(is_known.astype(np.float64), window)
    per_loss = np.divide(signs, n, out=np.zeros_like(signs), where=n > 0.5)
    weights = _running_sum(per_loss, window) * is_known
    # The mean uses up one degree of freedom.
    squares = running_mean((losses - smooth) ** 2, window)
    variance = np.where(n > 1.5, squares * n / np.maximum(n - 1, 1), 0.0)
    variance = np.where(is_known, variance, 0.0)
    total, total_weights = decrease.sum(), weights.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = decrease / total
        influence = (weights - share[:, None] * total_weights) / total
    return (
        Estimate(decrease, np.sqrt((weights**2 * variance).sum(1))),
        Estimate(share, np.sqrt((influence**2 * variance).sum(1))),
    )


def displacement_share(by_kind: FloatArray) -> Estimate:
    """Return the share of each kind in the squared net displacement, (kind,)."""
    # `by_kind` (kind, probe) holds the displacements D_kind, or the probes of D_kind. The
    # rows add up to D, the displacement from the first to the last iterate, so the shares
    # <D_kind, D> / |D|^2 add up to 1. Probes estimate a share as a ratio of two sums over
    # probes. Shares are NaN if the path ends where it began.
    whole = by_kind.sum(0)
    products, squares = by_kind * whole, whole**2
    n = len(whole)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = products.sum(1) / squares.sum()
        influence = (products - share[:, None] * squares) / squares.sum()
    return Estimate(share, np.sqrt(n / max(n - 1, 1) * (influence**2).sum(1)))
