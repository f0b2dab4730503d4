"""Compute the quantities of `analyzers.path_geometry` and their standard errors."""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.sketch.sketch import FOLD_VARIANCE

FloatArray = npt.NDArray[np.floating[Any]]

QUANTITIES: Final = ("gamma", "rsi", "eb", "lolr", "distance")

DISTANCE_LIMIT: Final = 0.3
"""Relative error of the distance above which first-order errors of its inverse mislead."""

ROUNDING_FLOOR: Final = {False: 2.0**-23, True: 2.0**-26}
"""Relative error that rounding may leave in any quantity, by whether the recording is in float64."""

ROUNDED_TIMES: Final = {"rsi": 2}
"""How many times a quantity that is divided by the distance more than once has that error."""

USES_SUM: Final = "uses_window_sum"
"""Name of the mark of steps whose estimates meet the known displacement of their window."""

FROM_DISTANCE: Final = "_from_distance"
"""Suffix of the error of a quantity if the distance is one standard error too long."""

COVARIANCE: Final = "_covariance"
"""Suffix of the covariance of a step's error with the sum of the errors of all steps in the
same epoch."""


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


class Quantity(NamedTuple):
    """A quantity of the geometry, with its derivatives."""

    value: FloatArray
    by_product: FloatArray  # derivative by the numerator
    by_distance: FloatArray  # derivative by the distance, including the numerator's


def quantities(sampled: Sampled, to_target: Estimate) -> dict[str, Quantity]:
    """Return `QUANTITIES` by name; all shapes agree."""
    # `analyzers.path_geometry` defines the quantities; `to_target` is |x - x*|. Values are
    # NaN where a norm is 0 or not finite, and the derivatives are 0 there.
    with np.errstate(divide="ignore", invalid="ignore"):
        product, slope = sampled.numerator.value, sampled.slope
        length, norm = to_target.value, np.sqrt(sampled.squares)
        gamma, rsi, eb = product / (norm * length), product / length**2, norm / length
        zeros = np.zeros_like(eb)
        found = {
            "gamma": (gamma, 1 / (norm * length), (slope / norm - gamma) / length),
            "rsi": (rsi, 1 / length**2, (slope / length - 2 * rsi) / length),
            "eb": (eb, zeros, -eb / length),
            "lolr": (product / norm**2, 1 / norm**2, slope / norm**2),
            "distance": (length, zeros, np.ones_like(length)),
        }
    results = {}
    for name, (value, *derivatives) in found.items():
        is_known = np.isfinite(value)
        results[name] = Quantity(
            np.where(is_known, value, np.nan),
            *(np.where(is_known, slope, 0.0) for slope in derivatives),
        )
    return results


def geometry(
    found: dict[str, Quantity],
    error: FloatArray,
    length_error: FloatArray,
    covariance: FloatArray | float = 0.0,
) -> dict[str, FloatArray]:
    """Return `quantities`, their standard errors and the distance's part in these."""
    # The errors are those of the numerator and of the distance, with their `covariance`. Standard
    # errors are first order.
    results = {}
    for name, q in found.items():
        from_distance = scaled(q.by_distance, length_error)
        mixed = 2 * scaled(q.by_product, scaled(q.by_distance, covariance))
        variance = scaled(q.by_product, error) ** 2 + from_distance**2 + mixed
        is_known = np.isfinite(q.value)
        results[name] = q.value
        stderr = np.sqrt(np.maximum(variance, 0))
        results[f"{name}_stderr"] = np.where(is_known, stderr, np.nan)
        results[f"{name}{FROM_DISTANCE}"] = np.where(is_known, from_distance, np.nan)
    return results


def scaled(derivative: FloatArray, error: FloatArray | float) -> FloatArray:
    """Multiply errors by derivatives; errors that are not known do not matter where these are 0."""
    with np.errstate(invalid="ignore"):
        result: FloatArray = np.where(derivative == 0, 0.0, derivative * error)
    return result


def decayed(
    gradient: Sampled,
    to_target: Estimate,
    *,
    param_sq: FloatArray,
    grad_dot_param: FloatArray,
    known_radial: FloatArray,
    weight_decay: float,
) -> Sampled:
    """Return the directions ``g + weight_decay * x``; all shapes agree."""
    # With the anchor r, a = x - r and v = x* - r:
    # <x, x - x*> = <a, r> - <r, v> + (|a|^2 - |v|^2 + |x - x*|^2) / 2.
    # `known_radial` is the right-hand side without |x - x*|^2 / 2. Unlike |x|^2 - |x*|^2, its
    # terms are small near the target.
    length = to_target.value
    radial = weight_decay * (known_radial + length**2 / 2)
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
