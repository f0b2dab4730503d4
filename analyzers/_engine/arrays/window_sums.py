"""Sharpen the products of a window's gradients by what they are known to add up to.

The sketch estimates the product y_k = <g_k, v> of every gradient with a fixed vector v, with
independent errors. If linear combinations of the true products are known, exactly or with an
error of known variance, `constrain` corrects all estimates at once (generalised least squares).

For SGD, the displacement at the end of a window is such a combination: see
`analyzers._engine.arrays.recurrence`. These functions have the step as their first axis; the last
axis separates parameters with different rules.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.recurrence import (
    Recurrence,
    gradient_of,
    path_variance,
)

FloatArray = npt.NDArray[np.floating[Any]]


class Posterior(NamedTuple):
    """Estimates of products after constraints, and the covariance of their errors."""

    # The covariance of the rows is ``diag(variance) - sum_q gains[q] gains[q].T``.
    value: FloatArray  # (row, part)
    variance: FloatArray  # variances before the constraints, (row, part)
    gains: FloatArray  # (constraint, row, part)
    scores: FloatArray  # residuals of the constraints over their standard errors
    weights: FloatArray  # inverse standard errors of the residuals; 0 if not used
    # The last row is M_0 - tie A_0: errors of M_0 contain those of A_0 this many times, (part,).
    tie: FloatArray


def constrain(
    value: FloatArray,
    variance: FloatArray,
    coefficients: FloatArray,
    sums: FloatArray,
    sum_variance: FloatArray,
    tie: FloatArray,
) -> Posterior:
    """Correct independent estimates, (row, part), so that linear combinations are met."""
    # Constraint q says that ``(coefficients[q] * truth).sum(0)`` is `sums[q]` (part,), with an
    # error of variance `sum_variance[q]`; an infinite variance switches the constraint off.
    value, gains = value.copy(), np.zeros_like(coefficients)
    scores, weights = np.zeros((2, *sums.shape))
    for q, c in enumerate(coefficients):
        spread = variance * c - (gains[:q] * (gains[:q] * c).sum(1)[:, None]).sum(0)
        total = (spread * c).sum(0) + sum_variance[q]
        residual = sums[q] - (value * c).sum(0)
        is_used = np.isfinite(total) & (total > 0) & np.isfinite(residual)
        inverse = np.divide(1, total, out=np.zeros_like(total), where=is_used)
        residual = np.where(is_used, residual, 0)
        value += spread * (inverse * residual)
        weights[q] = np.sqrt(inverse)
        gains[q] = spread * weights[q]
        scores[q] = np.where(is_used, residual * weights[q], np.nan)
    return Posterior(value, variance, gains, scores, weights, tie)


def row_stderr(posterior: Posterior) -> FloatArray:
    """Return the standard errors of the rows, (row, part)."""
    variance = posterior.variance - (posterior.gains**2).sum(0)
    stderr: FloatArray = np.sqrt(np.maximum(variance, 0))
    return stderr


def times_covariance(posterior: Posterior, vector: FloatArray) -> FloatArray:
    """Multiply vectors (row, ..., part) by the covariance of the rows."""
    shape = (len(vector), *[1] * (vector.ndim - 2), vector.shape[-1])
    product = posterior.variance.reshape(shape) * vector
    for gain in posterior.gains:
        column = gain.reshape(shape)
        product -= column * (column * vector).sum(0)
    return product


def displacement_variance(
    recurrence: Recurrence, posterior: Posterior, along: FloatArray
) -> FloatArray:
    """Return the variance of A before every step and at the end, (step + 1, part)."""
    # `along` holds the paths of A that belong to the gains, (step + 1, constraint, part): what
    # the constraints explain.
    before = path_variance(recurrence, posterior.variance, posterior.tie)
    variance: FloatArray = np.maximum(before - (along**2).sum(1), 0)
    return variance


class Shared(NamedTuple):
    """Covariances of sums of a window's errors with errors at its end or its start."""

    displacement: FloatArray  # with the error of A that the probes tell, (..., part)
    buffer: FloatArray  # with the error of M, (..., part)


def shared_with_end(
    posterior: Posterior,
    rows: FloatArray,
    spread: FloatArray,
    on_end: FloatArray,
    sum_variance: FloatArray,
    alike: FloatArray,
) -> Shared:
    """Return what errors of sums, with derivatives `rows` (row, ..., part), share with the end."""
    # `spread` is the product of the rows with the covariance, and `on_end` is `end_of_buffer`. The
    # error of the only constraint is `alike` times the error of A_0, and an independent error of
    # variance `sum_variance`.
    shape = (len(rows), *[1] * (rows.ndim - 2), rows.shape[-1])
    gain = posterior.gains[0].reshape(shape)
    passed = (gain * rows).sum(0) * posterior.weights[0]
    buffer = (on_end.reshape(shape) * spread).sum(0)
    return Shared(alike * spread[-2] + passed * sum_variance, buffer)


def shared_with_start(
    posterior: Posterior, spread: FloatArray, before: Shared
) -> FloatArray:
    """Return the covariance of sums, as in `shared_with_end`, with what shares errors before."""
    # `before` are the covariances of these earlier errors with those of A_0 and M_0.
    variance = posterior.variance[-2:]
    variance = variance.reshape(2, *[1] * (spread.ndim - 2), spread.shape[-1])
    last = spread[-2:]
    by_a, by_m = np.divide(last, variance, out=np.zeros_like(last), where=variance > 0)
    own: FloatArray = before.buffer - posterior.tie * before.displacement
    shared: FloatArray = by_a * before.displacement + by_m * own
    return shared


def end_of_buffer(recurrence: Recurrence, posterior: Posterior) -> FloatArray:
    """Return the derivatives of M at the end by the rows, (row, part)."""
    zeros = np.zeros((len(posterior.variance) - 1, posterior.variance.shape[-1]))
    return gradient_of(recurrence, zeros, np.ones_like(zeros[0]), posterior.tie)
