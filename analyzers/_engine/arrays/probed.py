"""Estimate lengths and cosines of vectors from their random probes."""

from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.geometry import Estimate

FloatArray = npt.NDArray[np.floating[Any]]


def cosine(a: FloatArray, b: FloatArray) -> Estimate:
    """Estimate cosines from probes (..., probe); NaN where a vector is 0 or not finite."""
    # Each of the n probes sums elements with random signs. Errors come from products of
    # different elements, so an element that dominates its probe causes little error. Let
    # u and w be the probes scaled to norm 1, c their product, and
    # s = sum_j (u_j w_j - c (u_j^2 + w_j^2) / 2)^2. Dominant elements contribute
    # e = max(s - (1 - c^2)^2 / n, 0) to s. If elements are assigned to probes at random,
    # the variance is ((1 - c^2)^2 - 2 e) / n. The bias is of the order of c / n.
    product, influence = _influence(a, b)
    spread, n = (influence**2).sum(-1), a.shape[-1]
    whole = (1 - product**2) ** 2
    single = np.maximum(spread - whole / n, 0)
    return Estimate(product, np.sqrt(np.maximum(whole - 2 * single, 0) / n))


def _influence(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return cosines, and the influence of every probe on them, (..., probe)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        u, w = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b))
        product = (u * w).sum(-1)
        influence = u * w - product[..., None] * (u**2 + w**2) / 2
    return product, influence


def cosine_errors(a: FloatArray, b: FloatArray, stderr: FloatArray) -> FloatArray:
    """Return errors of cosines by probe, (..., probe), whose squares sum to ``stderr**2``."""
    # The probes are the same for all vectors. The error of a sum of cosines is the norm of
    # the sum of these errors (the infinitesimal jackknife over the probes).
    _, influence = _influence(a, b)
    norm = np.linalg.norm(influence, axis=-1)
    size = np.divide(stderr, norm, out=np.zeros_like(norm), where=norm > 0)
    errors: FloatArray = influence * size[..., None]
    return errors


def scaled(estimate: Estimate, ratio: FloatArray) -> Estimate:
    """Multiply the standard errors of an estimate by `ratio`."""
    return Estimate(estimate.value, ratio * estimate.stderr)


def length(a: FloatArray, rounding: FloatArray | float = 0.0) -> Estimate:
    """Estimate norms from probes (..., probe); the squared norms are unbiased."""
    # `rounding` (...) is the expected sum of squares of the rounding errors of the probes.
    # It is subtracted from the squared norm; its own spread adds to the standard error.
    # As in `cosine`, let u be the probes scaled to norm 1. Dominant elements contribute
    # e = max(sum_j u_j^4 - 3 / n, 0), and the relative variance of the squared norm is
    # 2 (1 - e) / n.
    squares, n = a.astype(np.float64) ** 2, a.shape[-1]
    total = squares.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        fourth = (squares**2).sum(-1) / total**2
    single = np.maximum(np.where(total > 0, fourth, 0) - 3 / n, 0)
    left = np.maximum(total - rounding, 0)
    norm, spread = np.sqrt(left), np.maximum(1 - single, 0)
    variance = 2 * spread * left**2 + 4 * rounding * left + 2 * np.square(rounding)
    error = np.sqrt(variance / n)
    # First order in the squared norm, and bounded where that is near 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        stderr = np.fmin(error / (2 * norm), np.sqrt(error))
    return Estimate(norm, stderr)


def adjacent_cosine(
    product: FloatArray, square: FloatArray, square_before: FloatArray
) -> FloatArray:
    """Return product / sqrt(square * square_before), NaN if a square is 0 or not finite."""
    norms = np.sqrt(np.asarray(square, np.float64)) * np.sqrt(square_before)
    is_known = np.isfinite(norms) & (norms > 0)
    out = np.full(norms.shape, np.nan)
    # Rounding may push the cosine about 1e-7 beyond -1 or 1.
    np.divide(product, norms, out=out, where=is_known)
    cosine: FloatArray = np.clip(out, -1.0, 1.0)
    return cosine
