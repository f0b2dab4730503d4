"""The quantities of `analyzers.path_geometry`, with their standard errors."""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.sketch.sketch import CODE_VARIANCE, FOLD_VARIANCE

FloatArray = npt.NDArray[np.floating[Any]]


class Estimate(NamedTuple):
    """A value and its standard error, of one shape."""

    value: FloatArray
    stderr: FloatArray


class Sampled(NamedTuple):
    """A direction d at some point x, seen from x*.

    Attributes
    ----------
    numerator : Estimate
        <d, x - x*>; the standard error without what is from the distance.
    squares : numpy.ndarray
        |d|^2.
    slope : numpy.ndarray
        Derivative of the numerator with respect to the distance |x - x*|, as far as the
        one was computed from the other.
    """

    numerator: Estimate
    squares: FloatArray
    slope: FloatArray


QUANTITIES: Final = ("gamma", "rsi", "eb", "lolr", "distance")


def geometry(sampled: Sampled, to_target: Estimate) -> dict[str, FloatArray]:
    """See `analyzers.path_geometry`; all shapes agree.

    Parameters
    ----------
    sampled : Sampled
        The gradients.
    to_target : Estimate
        |x - x*|.

    Returns
    -------
    dict from str to numpy.ndarray
        Every one of `QUANTITIES`, and with ``_stderr`` its standard error to first order
        in those of the arguments. NaN where a norm is 0 or not finite.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        numerator, slope = sampled.numerator, sampled.slope
        h, D, g = numerator.value, to_target.value, np.sqrt(sampled.squares)
        gamma, rsi, eb, lolr = h / (g * D), h / D**2, g / D, h / g**2
        own, of_distance = numerator.stderr, to_target.stderr
        estimates = {
            "gamma": (
                gamma,
                np.hypot(own / (g * D), (slope / g - gamma) / D * of_distance),
            ),
            "rsi": (
                rsi,
                np.hypot(own / D**2, (slope / D - 2 * rsi) / D * of_distance),
            ),
            "eb": (eb, eb / D * of_distance),
            "lolr": (lolr, np.hypot(own, slope * of_distance) / g**2),
            "distance": to_target,
        }
    results = {}
    for name, (value, stderr) in estimates.items():
        is_known = np.isfinite(value)
        results[name] = np.where(is_known, value, np.nan)
        results[f"{name}_stderr"] = np.where(is_known, stderr, np.nan)
    return results


def decayed(
    gradient: Sampled,
    to_target: Estimate,
    *,
    param_sq: FloatArray,
    target_sq: FloatArray,
    grad_dot_param: FloatArray,
    weight_decay: float,
) -> Sampled:
    """Add a multiple of the parameters to gradients; all shapes agree.

    Parameters
    ----------
    gradient : Sampled
        The gradients g.
    to_target : Estimate
        |x - x*|; from it follows ``<x, x - x*> = (|x|^2 - |x*|^2 + |x - x*|^2) / 2``.
    param_sq, target_sq, grad_dot_param : numpy.ndarray
        |x|^2, |x*|^2 and <g, x>.
    weight_decay : float
        Times the parameters.

    Returns
    -------
    Sampled
        The gradients with weight decay.
    """
    D, h = to_target.value, gradient.numerator
    radial = weight_decay * (param_sq - target_sq + D**2) / 2
    squares = (
        gradient.squares
        + 2 * weight_decay * grad_dot_param
        + weight_decay**2 * param_sq
    )
    numerator = Estimate(h.value + radial, h.stderr)
    return Sampled(numerator, np.maximum(squares, 0), weight_decay * D)


def distance(a_sq: FloatArray, product: Estimate, v_sq: FloatArray) -> Estimate:
    """Return |a - v| from |a|^2, an estimate of <a, v>, and |v|^2."""
    bound = np.sqrt(a_sq * v_sq)
    squares = a_sq - 2 * np.clip(product.value, -bound, bound) + v_sq
    length = np.sqrt(np.maximum(squares, 0))
    # To first order it is stderr / length; a length near 0 may be off by this at most.
    most = np.sqrt(2 * product.stderr)
    stderr = np.divide(product.stderr, length, out=most.copy(), where=length > 0)
    return Estimate(length, np.minimum(stderr, most))


class Crowding(NamedTuple):
    """Energies of vectors by tensor, and how they meet other tensors in buckets.

    Attributes
    ----------
    energy : numpy.ndarray
        Sum of squares, shape ``(layer,)``.
    crowd : numpy.ndarray
        The same with every element times the number of elements, of every tensor, that
        fall into its bucket, shape ``(layer, layer)``.
    """

    energy: FloatArray
    crowd: FloatArray


def crowding(
    squares: FloatArray,
    first_row: int,
    offsets: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
) -> Crowding:
    """Count the elements that share the buckets of a fold with some energy.

    Parameters
    ----------
    squares : numpy.ndarray
        Squares of a vector's elements, some rows of the fold, shape ``(row, bucket)``;
        0 between tensors.
    first_row : int
        Which row is the first of them.
    offsets, sizes : numpy.ndarray
        Tensors in the folded vector, in ascending order, shape ``(layer,)``.

    Returns
    -------
    Crowding
        Sums over these rows, float64.
    """
    n_rows, width = squares.shape
    n_layers = len(sizes)
    # Between these columns nothing begins or ends, in any row.
    borders = np.concatenate([[0], offsets % width, (offsets + sizes) % width])
    columns = np.unique(borders)
    rows_until = np.ceil(((offsets + sizes)[None] - columns[:, None]) / width)
    rows_before = np.ceil((offsets[None] - columns[:, None]) / width)
    n_elements = rows_until - rows_before

    # In float32: a few hundred terms, for standard errors only.
    energies = np.add.reduceat(squares, columns, axis=1).astype(np.float64)
    first = (first_row + np.arange(n_rows))[:, None] * width + columns
    layers = np.searchsorted((offsets + sizes)[sizes > 0], first, side="right")
    # What lies behind the last tensor belongs to nobody.
    owner = np.append(np.flatnonzero(sizes > 0), n_layers)[layers]
    by_column = np.zeros((n_layers + 1, len(columns)))
    np.add.at(by_column, (owner, np.arange(len(columns))[None]), energies)
    by_column = by_column[:n_layers]
    return Crowding(by_column.sum(1), by_column @ n_elements)


def sketch_variance(
    gradient_sq: FloatArray,
    residual_sq: FloatArray,
    crowd: FloatArray,
    sizes: npt.NDArray[np.int64],
    *,
    bits: int,
) -> FloatArray:
    """Variance of the sketched inner product of weighted vectors, tensor by tensor.

    With G = w g, u = v / w, and the fold into buckets j of rows b,
    ``sum_j (sum_b G_bj^2) (sum_b u_bj^2) - sum_bj G_bj^2 u_bj^2`` comes from the fold, and
    ``CODE_VARIANCE / bits |G|^2 |u|^2`` from the code. The energy of G is taken to be even
    within a tensor; if both are even everywhere, this is
    ``((1 - 1 / n_rows) FOLD_VARIANCE + CODE_VARIANCE) / bits |G|^2 |u|^2``.

    Parameters
    ----------
    gradient_sq : numpy.ndarray
        |w g|^2, shape ``(step, layer)``.
    residual_sq : numpy.ndarray
        |v / w|^2, shape ``(layer,)``.
    crowd : numpy.ndarray
        What `crowding` returns for the energies of v / w in every tensor, shape
        ``(layer, layer)``.
    sizes : numpy.ndarray
        Elements of each tensor, shape ``(layer,)``.
    bits : int
        Number of signs.

    Returns
    -------
    numpy.ndarray
        Shape ``(step, layer)``; over all tensors the variance is the sum.
    """
    density = gradient_sq / np.maximum(sizes, 1)
    fold = FOLD_VARIANCE * (density @ crowd.T - density * residual_sq)
    whole = gradient_sq.sum(1, keepdims=True)
    variance: FloatArray = (
        np.maximum(fold, 0) + CODE_VARIANCE / bits * whole * residual_sq
    )
    return variance
