"""What parts of a path contribute to its whole, and how well that is known."""

from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.geometry import Estimate
from analyzers.gradients.arrays.zigzag import KINDS, IntArray, Segments

FloatArray = npt.NDArray[np.floating[Any]]


def running_mean(values: FloatArray, window: int) -> FloatArray:
    """Mean of what lies around every value.

    Parameters
    ----------
    values : numpy.ndarray
        Shape ``(..., step)``. NaN are left out.
    window : int
        How many values, odd; fewer at both ends.

    Returns
    -------
    numpy.ndarray
        The same shape, float64. NaN where a window holds no value.
    """
    is_there = np.isfinite(values)
    n = _running_sum(is_there.astype(np.float64), window)
    sums = _running_sum(np.where(is_there, values, 0.0), window)
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
    """Add up the values of the steps of every kind, in the order of `KINDS`.

    Parameters
    ----------
    values : numpy.ndarray
        Shape ``(step,)``. NaN are left out.
    kinds : numpy.ndarray
        Shape ``(step,)``.

    Returns
    -------
    numpy.ndarray
        Shape ``(kind,)``.
    """
    return np.array([np.nansum(values[kinds == kind]) for kind in KINDS])


def border_signs(segments: Segments) -> FloatArray:
    """How a quantity at every step enters its decrease in the segments of a kind.

    Parameters
    ----------
    segments : Segments
        They cover all steps.

    Returns
    -------
    numpy.ndarray
        Shape ``(kind, step)``, in the order of `KINDS`: 1 at a segment's first step, -1
        at the first one after it, or at the last step of all.
    """
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
    r"""Decrease of a smoothed loss by kind, and its share of the whole decrease.

    With :math:`S` the running mean, the decrease of a kind is :math:`\sum_k c_k S_k =
    \sum_j w_j L_j`: linear in the losses. With :math:`\sigma_j^2` the variance of a loss
    around the running mean, its variance is :math:`\sum_j w_j^2 \sigma_j^2`, and that of
    its share q is, to first order, :math:`\sum_j (w_j - q t_j)^2 \sigma_j^2 / D^2`, where t
    and D belong to the whole.

    Parameters
    ----------
    losses : numpy.ndarray
        Shape ``(step,)``; NaN where none was logged.
    signs : numpy.ndarray
        As `border_signs` returns them.
    window : int
        Of the running mean, odd; 1 for losses without noise.

    Returns
    -------
    tuple of Estimate
        The decrease and its share, shape ``(kind,)``. NaN where nothing is known at a
        border.
    """
    smooth = running_mean(losses, window)
    is_border = signs != 0
    decrease = np.where(is_border, signs * smooth, 0.0).sum(1)
    is_there = np.isfinite(losses)
    n = _running_sum(is_there.astype(np.float64), window)
    per_loss = np.divide(signs, n, out=np.zeros_like(signs), where=n > 0.5)
    weights = _running_sum(per_loss, window) * is_there
    # A mean takes one degree of freedom.
    squares = running_mean((losses - smooth) ** 2, window)
    variance = np.where(n > 1.5, squares * n / np.maximum(n - 1, 1), 0.0)
    variance = np.where(is_there, variance, 0.0)
    total, of_total = decrease.sum(), weights.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = decrease / total
        influence = (weights - share[:, None] * of_total) / total
    return (
        Estimate(decrease, np.sqrt((weights**2 * variance).sum(1))),
        Estimate(share, np.sqrt((influence**2 * variance).sum(1))),
    )


def displacement_share(by_kind: FloatArray) -> Estimate:
    r"""Share of the squared net displacement that the steps of every kind make.

    The displacements of all kinds add up to D, that from the first to the last iterate,
    so that :math:`\langle D_\mathrm{kind}, D \rangle / |D|^2` add up to 1. From probes both
    products are sums over probes; the error is that of a ratio of such sums.

    Parameters
    ----------
    by_kind : numpy.ndarray
        Displacements, or their probes, shape ``(kind, probe)``.

    Returns
    -------
    Estimate
        Shape ``(kind,)``; NaN if the path ends where it began.
    """
    whole = by_kind.sum(0)
    products, squares = by_kind * whole, whole**2
    n = len(whole)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = products.sum(1) / squares.sum()
        influence = (products - share[:, None] * squares) / squares.sum()
    return Estimate(share, np.sqrt(n / max(n - 1, 1) * (influence**2).sum(1)))
