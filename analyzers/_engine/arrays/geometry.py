"""Compute the quantities of `analyzers.path_geometry` and their standard errors."""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.sketch.sketch import FOLD_VARIANCE

FloatArray = npt.NDArray[np.floating[Any]]

QUANTITIES: Final = ("gamma", "rsi", "eb", "lolr", "distance")


class Estimate(NamedTuple):
    """A value and its standard error, of the same shape."""

    value: FloatArray
    stderr: FloatArray


class Sampled(NamedTuple):
    """A sampled direction d at a point x, relative to the target x*."""

    # The numerator may be computed from the distance |x - x*|. `slope` is the derivative of
    # the numerator by the distance; `numerator.stderr` leaves out the error of the distance.
    numerator: Estimate  # <d, x - x*>
    squares: FloatArray  # |d|^2
    slope: FloatArray  # derivative of <d, x - x*> by |x - x*|


def geometry(sampled: Sampled, to_target: Estimate) -> dict[str, FloatArray]:
    """Return `QUANTITIES` and their standard errors by name; all shapes agree."""
    # `analyzers.path_geometry` defines the quantities; `to_target` is |x - x*|. Standard
    # errors are first order. Values are NaN where a norm is 0 or not finite.
    with np.errstate(divide="ignore", invalid="ignore"):
        numerator, slope = sampled.numerator, sampled.slope
        product, length = numerator.value, to_target.value
        norm = np.sqrt(sampled.squares)
        gamma, rsi = product / (norm * length), product / length**2
        eb, lolr = norm / length, product / norm**2
        error, length_error = numerator.stderr, to_target.stderr
        gamma_slope = (slope / norm - gamma) / length
        rsi_slope = (slope / length - 2 * rsi) / length
        estimates = {
            "gamma": (
                gamma,
                np.hypot(error / (norm * length), gamma_slope * length_error),
            ),
            "rsi": (rsi, np.hypot(error / length**2, rsi_slope * length_error)),
            "eb": (eb, eb / length * length_error),
            "lolr": (lolr, np.hypot(error, slope * length_error) / norm**2),
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
    """Return the directions ``g + weight_decay * x``; all shapes agree."""
    # <x, x - x*> = (|x|^2 - |x*|^2 + |x - x*|^2) / 2.
    length = to_target.value
    radial = weight_decay * (param_sq - target_sq + length**2) / 2
    squares = (
        gradient.squares
        + 2 * weight_decay * grad_dot_param
        + weight_decay**2 * param_sq
    )
    value, stderr = gradient.numerator
    numerator = Estimate(value + radial, stderr)
    return Sampled(numerator, np.maximum(squares, 0), weight_decay * length)


def distance(a_sq: FloatArray, product: Estimate, v_sq: FloatArray) -> Estimate:
    """Return |a - v| from |a|^2, an estimate of <a, v>, and |v|^2."""
    bound = np.sqrt(a_sq * v_sq)
    squares = a_sq - 2 * np.clip(product.value, -bound, bound) + v_sq
    length = np.sqrt(np.maximum(squares, 0))
    # To first order the standard error is product.stderr / length; `limit` bounds it where
    # the length is near 0.
    limit = np.sqrt(2 * product.stderr)
    stderr = np.divide(product.stderr, length, out=limit.copy(), where=length > 0)
    return Estimate(length, np.minimum(stderr, limit))


def sketch_variance(
    gradient_sq: FloatArray,
    residual_sq: FloatArray,
    crowd: FloatArray,
    sizes: npt.NDArray[np.int64],
    *,
    code_variance: float,
) -> FloatArray:
    """Return the variance of products estimated from a sketch, (step, layer)."""
    # Let G = w g and u = v / w, with the weights w, in rows b and buckets j of the fold.
    # `gradient_sq` is |G|^2, (step, layer), `residual_sq` is |u|^2, (layer,), and `crowd` sums
    # u_bj^2 times the energy of G in bucket j, (step, layer): a product of the two results of
    # `crowding`. The variance of a whole product is the sum over layers.
    #
    # The fold contributes sum_j (sum_b G_bj^2) (sum_b u_bj^2) - sum_bj G_bj^2 u_bj^2, and
    # the code contributes `code_variance` |G|^2 |u|^2. The energy of G is assumed
    # to be even within each layer. If G and u are even everywhere, the variance is
    # ((1 - 1 / n_rows) FOLD_VARIANCE / bits + code_variance) |G|^2 |u|^2.
    density = gradient_sq / np.maximum(sizes, 1)
    fold = FOLD_VARIANCE * (crowd - density * residual_sq)
    whole = gradient_sq.sum(1, keepdims=True)
    variance: FloatArray = np.maximum(fold, 0) + code_variance * whole * residual_sq
    return variance
