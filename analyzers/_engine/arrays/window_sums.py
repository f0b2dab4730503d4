"""Sharpen the products of a window's gradients by what they are known to add up to.

The sketch estimates the product y_k = <g_k, v> of every gradient with a fixed vector v, with
independent errors. If linear combinations of the true products are known, exactly or with an
error of known variance, `constrain` corrects all estimates at once (generalised least squares).

For SGD, the displacement at the end of a window is such a combination. With the displacement
a_k and the momentum buffer m_k before step k, torch's update is

    d = sign g_k + decay x_k,    m_(k+1) = momentum m_k + intake d,
    a_(k+1) = a_k - lr (direct d + buffered m_(k+1)),

so the products A_k = <a_k, v> and M_k = <m_k, v> follow from y_k, A_0 and M_0. These functions
have the step as their first axis; the last axis separates parameters with different rules.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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


class Rule(NamedTuple):
    """Coefficients of the updates of a window, each (step, part); see the module."""

    lr: FloatArray
    momentum: FloatArray
    intake: FloatArray
    direct: FloatArray
    buffered: FloatArray
    decay: FloatArray
    sign: FloatArray

    @property
    def pull(self) -> FloatArray:
        """Factor of d in -u."""
        return self.lr * (self.direct + self.buffered * self.intake)

    @property
    def push(self) -> FloatArray:
        """Factor of the buffer in -u."""
        return self.lr * self.buffered * self.momentum


class States(NamedTuple):
    """Products of displacement and buffer with v before every step, and at the end."""

    displacement: FloatArray  # A, (step + 1, ..., part)
    buffer: FloatArray  # M, (step + 1, ..., part)


def advance(
    rule: Rule, products: FloatArray, displacement: FloatArray, buffer: FloatArray
) -> States:
    """Return A and M from the products of gradients, (step, ..., part), and A_0 and M_0."""
    # v is orthogonal to the anchor r, so <x_k, v> is A_k.
    n = len(products)
    a, m = np.empty((2, n + 1, *products.shape[1:]))
    a[0], m[0] = displacement, buffer
    pull, push = rule.pull, rule.push
    for k in range(n):
        d = rule.sign[k] * products[k] + rule.decay[k] * a[k]
        a[k + 1] = a[k] - pull[k] * d - push[k] * m[k]
        m[k + 1] = rule.momentum[k] * m[k] + rule.intake[k] * d
    return States(a, m)


def gradient_of(
    rule: Rule, on_displacement: FloatArray, on_buffer: FloatArray, tie: FloatArray
) -> FloatArray:
    """Return the derivatives of ``(A w).sum(0) + M_end b`` by the rows y, A_0, M_0 - tie A_0."""
    # `on_displacement` is w, (step + 1, ..., part), and `on_buffer` is b, (..., part). The
    # result is (step + 2, ..., part): the transpose of `advance`.
    n = len(on_displacement) - 1
    pull, push = rule.pull, rule.push
    result = np.empty((n + 2, *on_displacement.shape[1:]))
    a, m = on_displacement[n].copy(), on_buffer.copy()
    for k in reversed(range(n)):
        by_d = rule.intake[k] * m - pull[k] * a
        result[k] = rule.sign[k] * by_d
        m = rule.momentum[k] * m - push[k] * a
        a = a + rule.decay[k] * by_d + on_displacement[k]
    result[n], result[n + 1] = a + tie * m, m
    return result


def states(rule: Rule, rows: FloatArray, tie: FloatArray) -> States:
    """Apply `advance` to rows y, A_0 and M_0 - tie A_0, (step + 2, ..., part)."""
    return advance(rule, rows[:-2], rows[-2], rows[-1] + tie * rows[-2])


def displacement_variance(rule: Rule, posterior: Posterior) -> FloatArray:
    """Return the variance of A before every step and at the end, (step + 1, part)."""
    # The covariance of (A, M) before the constraints, minus what the constraints explain.
    variance = posterior.variance
    n = len(variance) - 2
    pull, push = rule.pull, rule.push
    tie = posterior.tie
    aa, am, mm = variance[-2], tie * variance[-2], variance[-1] + tie**2 * variance[-2]
    result = np.empty((n + 1, *variance.shape[1:]))
    for k in range(n):
        result[k] = aa
        # (A, M) -> F (A, M) + f y.
        f11, f12 = 1 - pull[k] * rule.decay[k], -push[k]
        f21, f22 = rule.intake[k] * rule.decay[k], rule.momentum[k]
        y = variance[k]
        aa, am, mm = (
            f11**2 * aa + 2 * f11 * f12 * am + f12**2 * mm + pull[k] ** 2 * y,
            f11 * f21 * aa
            + (f11 * f22 + f12 * f21) * am
            + f12 * f22 * mm
            - pull[k] * rule.intake[k] * y,
            f21**2 * aa + 2 * f21 * f22 * am + f22**2 * mm + rule.intake[k] ** 2 * y,
        )
    result[n] = aa
    for gain in posterior.gains:
        explained = states(rule, gain, tie).displacement
        result -= explained**2
    return np.maximum(result, 0)


class Shared(NamedTuple):
    """Covariances of sums of a window's errors with errors at its end or its start."""

    displacement: FloatArray  # with the error of A that the probes tell, (..., part)
    buffer: FloatArray  # with the error of M, (..., part)


def shared_with_end(
    rule: Rule,
    posterior: Posterior,
    rows: FloatArray,
    sum_variance: FloatArray,
    alike: FloatArray,
) -> Shared:
    """Return what errors of sums, with derivatives `rows` (row, ..., part), share with the end."""
    # The error of the only constraint is `alike` times the error of A_0, and an independent error
    # of variance `sum_variance`.
    spread = times_covariance(posterior, rows)
    gain = posterior.gains[0].reshape(len(rows), *[1] * (rows.ndim - 2), rows.shape[-1])
    passed = (gain * rows).sum(0) * posterior.weights[0]
    on_end = end_of_buffer(rule, posterior).reshape(gain.shape)
    return Shared(alike * spread[-2] + passed * sum_variance, (on_end * spread).sum(0))


def shared_with_start(
    posterior: Posterior, rows: FloatArray, before: Shared
) -> FloatArray:
    """Return the covariance of sums, as in `shared_with_end`, with what shares errors before."""
    # `before` are the covariances of these earlier errors with those of A_0 and M_0.
    variance = posterior.variance[-2:]
    variance = variance.reshape(2, *[1] * (rows.ndim - 2), rows.shape[-1])
    spread = times_covariance(posterior, rows)[-2:]
    by_a, by_m = np.divide(
        spread, variance, out=np.zeros_like(spread), where=variance > 0
    )
    own: FloatArray = before.buffer - posterior.tie * before.displacement
    shared: FloatArray = by_a * before.displacement + by_m * own
    return shared


def end_of_buffer(rule: Rule, posterior: Posterior) -> FloatArray:
    """Return the derivatives of M at the end by the rows, (row, part)."""
    zeros = np.zeros((len(posterior.variance) - 1, posterior.variance.shape[-1]))
    return gradient_of(rule, zeros, np.ones_like(zeros[0]), posterior.tie)
