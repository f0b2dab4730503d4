"""Lengths and cosines of vectors that are known by their random probes."""

from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers._arrays.path_geometry import Estimate

FloatArray = npt.NDArray[np.floating[Any]]


def cosine(a: FloatArray, b: FloatArray) -> Estimate:
    r"""Estimate the cosine of two vectors from their probes.

    Each probe is a sum over other elements, so that the spread of the probes tells the
    error: with u and w the probes, scaled to norm 1, and c their product, the variance is
    :math:`\sum_j (u_j w_j - c (u_j^2 + w_j^2) / 2)^2`.

    Parameters
    ----------
    a, b : numpy.ndarray
        Probes, shape ``(..., probe)``.

    Returns
    -------
    Estimate
        Shape ``(...)``; its bias is of the order of cosine / probes. NaN where a vector
        is 0 or not finite.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        u, w = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b))
        product = (u * w).sum(-1)
        influence = u * w - product[..., None] * (u**2 + w**2) / 2
    return Estimate(product, np.sqrt((influence**2).sum(-1)))


def length(a: FloatArray) -> Estimate:
    r"""Estimate the norm of a vector from its probes.

    The square of the norm is unbiased; its variance is that of a sum of n equal terms,
    :math:`\sum_j a_j^4 - (\sum_j a_j^2)^2 / n`.

    Parameters
    ----------
    a : numpy.ndarray
        Probes, shape ``(..., probe)``.

    Returns
    -------
    Estimate
        Shape ``(...)``.
    """
    squares = a.astype(np.float64) ** 2
    total = squares.sum(-1)
    variance = np.maximum((squares**2).sum(-1) - total**2 / a.shape[-1], 0)
    norm = np.sqrt(total)
    with np.errstate(divide="ignore", invalid="ignore"):
        stderr = np.where(norm > 0, np.sqrt(variance) / (2 * norm), 0)
    return Estimate(norm, stderr)
