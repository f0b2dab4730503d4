"""Quantities of `analyzers.path_geometry` with their standard errors."""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trajstore.sketch.sketch import CODE_VARIANCE, FOLD_VARIANCE

FloatArray = npt.NDArray[np.floating[Any]]

QUANTITIES: Final = ("gamma", "rsi", "eb", "lolr", "distance")


class Estimate(NamedTuple):
    """A value and its standard error, of one shape."""

    value: FloatArray
    stderr: FloatArray


class Sampled(NamedTuple):
    """A sampled direction d at a point x, in relation to the target x*."""

    numerator: (
        Estimate  # <d, x - x*>; the standard error leaves out the distance's part
    )
    squares: FloatArray  # |d|^2
    slope: FloatArray  # derivative of the numerator by |x - x*|, where computed from it


def geometry(sampled: Sampled, to_target: Estimate) -> dict[str, FloatArray]:
    """Return each of `QUANTITIES` and its ``_stderr``; all shapes agree."""
    # See `analyzers.path_geometry`; `to_target` is |x - x*|. Standard errors are to first
    # order in those of the arguments. NaN where a norm is 0 or not finite.
    with np.errstate(divide="ignore", invalid="ignore"):
        numerator, slope = sampled.numerator, sampled.slope
        h, D, g = numerator.value, to_target.value, np.sqrt(sampled.squares)
        gamma, rsi, eb, lolr = h / (g * D), h / D**2, g / D, h / g**2
        own, distance_error = numerator.stderr, to_target.stderr
        estimates = {
            "gamma": (
                gamma,
                np.hypot(own / (g * D), (slope / g - gamma) / D * distance_error),
            ),
            "rsi": (
                rsi,
                np.hypot(own / D**2, (slope / D - 2 * rsi) / D * distance_error),
            ),
            "eb": (eb, eb / D * distance_error),
            "lolr": (lolr, np.hypot(own, slope * distance_error) / g**2),
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
    """Add ``weight_decay * x`` to gradients; all shapes agree."""
    # From the distance follows <x, x - x*> = (|x|^2 - |x*|^2 + |x - x*|^2) / 2.
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
    # The standard error is stderr / length to first order. This bounds it near length 0.
    most = np.sqrt(2 * product.stderr)
    stderr = np.divide(product.stderr, length, out=most.copy(), where=length > 0)
    return Estimate(length, np.minimum(stderr, most))


def crowding(
    squares: FloatArray,
    first_row: int,
    offsets: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
) -> tuple[FloatArray, FloatArray]:
    """Return a vector's energy by layer, and its meetings with layers in buckets."""
    # The vector is given by some rows of its fold, from `first_row` on: `squares` of its
    # elements, (row, bucket), 0 between layers. `offsets` and `sizes` of layers rise.
    # Energies are sums of squares, (layer,). Meetings, (layer, layer), are sums of each
    # square times the number of elements, by layer, that share its bucket.
    n_rows, width = squares.shape
    n_layers = len(sizes)
    # No layer begins or ends between these columns, in any row.
    borders = np.concatenate([[0], offsets % width, (offsets + sizes) % width])
    columns = np.unique(borders)
    rows_until = np.ceil(((offsets + sizes)[None] - columns[:, None]) / width)
    rows_before = np.ceil((offsets[None] - columns[:, None]) / width)
    n_elements = rows_until - rows_before

    # float32 is enough for a few hundred terms that enter standard errors only.
    energies = np.add.reduceat(squares, columns, axis=1).astype(np.float64)
    first = (first_row + np.arange(n_rows))[:, None] * width + columns
    layers = np.searchsorted((offsets + sizes)[sizes > 0], first, side="right")
    # The gap after the last layer belongs to no layer: its sums are dropped.
    owner = np.append(np.flatnonzero(sizes > 0), n_layers)[layers]
    by_column = np.zeros((n_layers + 1, len(columns)))
    np.add.at(by_column, (owner, np.arange(len(columns))[None]), energies)
    by_column = by_column[:n_layers]
    return by_column.sum(1), by_column @ n_elements


def sketch_variance(
    gradient_sq: FloatArray,
    residual_sq: FloatArray,
    crowd: FloatArray,
    sizes: npt.NDArray[np.int64],
    *,
    bits: int,
) -> FloatArray:
    """Return the variance of sketched products of weighted vectors, (step, layer)."""
    # `gradient_sq` is |w g|^2, (step, layer); `residual_sq`, |v / w|^2, and `crowd` are what
    # `crowding` returns for v / w. The variance over all layers is the sum.
    #
    # With G = w g, u = v / w, and the fold into buckets j of rows b,
    # sum_j (sum_b G_bj^2) (sum_b u_bj^2) - sum_bj G_bj^2 u_bj^2 comes from the fold, and
    # CODE_VARIANCE / bits |G|^2 |u|^2 from the code. The energy of G is taken to be even
    # within a layer; if both are even everywhere, this is
    # ((1 - 1 / n_rows) FOLD_VARIANCE + CODE_VARIANCE) / bits |G|^2 |u|^2.
    density = gradient_sq / np.maximum(sizes, 1)
    fold = FOLD_VARIANCE * (density @ crowd.T - density * residual_sq)
    whole = gradient_sq.sum(1, keepdims=True)
    variance: FloatArray = (
        np.maximum(fold, 0) + CODE_VARIANCE / bits * whole * residual_sq
    )
    return variance
