"""The quantities of `analyzers.path_geometry`, with their standard errors."""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.sketch import CODE_VARIANCE

FloatArray = npt.NDArray[np.floating[Any]]

MIN_ROWS: Final = 16
"""Rows of the fold from which on the unevenness of its buckets is accounted for."""


class Estimate(NamedTuple):
    """A value and its standard error, of one shape."""

    value: FloatArray
    stderr: FloatArray


QUANTITIES: Final = ("gamma", "rsi", "eb", "lolr", "distance")


def geometry(
    numerator: Estimate, to_target: Estimate, gradient_sq: FloatArray
) -> dict[str, FloatArray]:
    """See `analyzers.path_geometry`; all shapes agree.

    Parameters
    ----------
    numerator : Estimate
        <g, x - x*>.
    to_target : Estimate
        |x - x*|.
    gradient_sq : numpy.ndarray
        |g|^2.

    Returns
    -------
    dict from str to numpy.ndarray
        Every one of `QUANTITIES`, and with ``_stderr`` its standard error to first order
        in those of the arguments. NaN where a norm is 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        h, D, g = numerator.value, to_target.value, np.sqrt(gradient_sq)
        D = np.where(D > 0, D, np.nan)
        g_or_nan = np.where(g > 0, g, np.nan)
        relative = to_target.stderr / D
        gamma, rsi, eb = h / (g_or_nan * D), h / D**2, g / D
        lolr = h / g_or_nan**2
        return {
            "gamma": gamma,
            "gamma_stderr": np.hypot(
                numerator.stderr / (g_or_nan * D), gamma * relative
            ),
            "rsi": rsi,
            "rsi_stderr": np.hypot(numerator.stderr / D**2, 2 * rsi * relative),
            "eb": eb,
            "eb_stderr": eb * relative,
            "lolr": lolr,
            "lolr_stderr": numerator.stderr / g_or_nan**2,
            "distance": to_target.value,
            "distance_stderr": to_target.stderr,
        }


def distance(a_sq: FloatArray, product: Estimate, v_sq: FloatArray) -> Estimate:
    """Return |a - v| from |a|^2, an estimate of <a, v>, and |v|^2."""
    bound = np.sqrt(a_sq * v_sq)
    squares = a_sq - 2 * np.clip(product.value, -bound, bound) + v_sq
    length = np.sqrt(np.maximum(squares, 0))
    stderr = np.full_like(length, 0)
    np.divide(product.stderr, length, out=stderr, where=length > 0)
    return Estimate(length, stderr)


def sketch_variance(
    gradient_sq: FloatArray,
    residual_sq: FloatArray | float,
    *,
    overlap: float | None,
    n_rows: int,
    bits: int,
) -> FloatArray:
    """Variance of the sketched inner product of weighted vectors.

    ``((1 - 1 / n_rows) overlap + CODE_VARIANCE / bits) |w g|^2 |v / w|^2``, where the
    overlap is 1 / bits for buckets of even energy.

    Parameters
    ----------
    gradient_sq : numpy.ndarray
        |w g|^2, shape ``(step,)`` or ``(step, 1)``.
    residual_sq : float or numpy.ndarray
        |v / w|^2, one number or shape ``(layer,)``.
    overlap : float or None
        Mean over the steps of the sum over buckets of the shares of the energies of g
        and v in them; None to take the buckets for even.
    n_rows : int
        Rows of the fold.
    bits : int
        Number of signs.

    Returns
    -------
    numpy.ndarray
        Shape ``(step,)`` or ``(step, layer)``.
    """
    if overlap is None:
        overlap = 1 / bits
    per_energy = (1 - 1 / n_rows) * overlap + CODE_VARIANCE / bits
    return gradient_sq * residual_sq * per_energy
