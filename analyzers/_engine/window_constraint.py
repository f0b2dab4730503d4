"""Sharpen a window's estimates by its known displacement, where the optimizer's rule holds.

The rule is checked in every window against exact products of the updates: with gradients that
were recorded before a change such as clipping, after a skipped step, or with parameters that
were changed by hand, it does not hold, and the window's estimates stay as they are.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.geometry import Estimate
from analyzers._engine.arrays.probe_errors import correlated
from analyzers._engine.arrays.recurrence import (
    Recurrence,
    Rule,
    gradient_of,
    recurrence_of,
    states,
)
from analyzers._engine.arrays.window_sums import (
    Posterior,
    constrain,
    displacement_variance,
    end_of_buffer,
    shared_with_end,
    times_covariance,
)
from analyzers._engine.measured_window import Measured
from analyzers._engine.rounding import Rounding, rounding_of
from analyzers._engine.rules import Parts, take

FloatArray = npt.NDArray[np.floating[Any]]

RULE_RTOL: Final = 1e-4
"""Largest difference of an update from the rule, relative to the update."""

TABLE_RTOL: Final = 2.0**-20
"""Rounding error of recorded products, relative to the product of the norms."""

UPDATE_RTOL: Final = 2.0**-24
"""Rounding error of an update in float32, relative to the parameters."""

MAX_SCORE: Final = 5.0
"""Largest residual of a window's sum, in standard errors, at which the rule may hold."""


class Memory(NamedTuple):
    """The product of the momentum buffer with x* - r at the end of a window, or with v'."""

    value: FloatArray  # (part,)
    variance: FloatArray  # (part,)
    # Covariance with the error of the displacement's product that the probes give at this step,
    # over the variance of that error, (part,).
    tie: FloatArray
    probe_variance: FloatArray  # variance of that error, (part,)


class Constrained(NamedTuple):
    """Estimates of a window that meet its displacement."""

    recurrence: Recurrence  # by part
    posterior: (
        Posterior  # rows: <g, v'> of every step, <a, v'> and <m, v'> at the start
    )
    on_end: FloatArray  # derivatives of <m, v'> at the end by the rows, (row, part)
    displacement: Estimate  # <a, v'>, (step, part)
    covariance: FloatArray  # of <g, v'> and <a, v'> in a step, (step, part)
    memory: Memory


class Traced(NamedTuple):
    """Products of the updates with the basis, compared with the rule."""

    holds: npt.NDArray[np.bool_]  # (layer,)
    is_idle: npt.NDArray[np.bool_]  # layers without gradients and updates, (layer,)
    first: FloatArray  # <m, s> at the start, with the buffer m, (layer, basis)
    first_error: FloatArray  # its rounding error
    last: FloatArray  # <m, s> at the end


def constrain_window(
    measured: Measured, rule: Rule, parts: Parts, memory: Memory | None
) -> Constrained | None:
    """Constrain a window; return None where the rule, given by layer, does not hold."""
    with np.errstate(all="ignore"):
        traced = trace(measured, rule, parts.sizes)
        if not parts.are_layers and not traced.holds.all():
            return None
        _, layers = np.unique(parts.of_layer, return_index=True)
        by_part = take(rule, layers)
        if parts.are_layers:
            is_moving = ~traced.is_idle & traced.holds
            by_part = by_part._replace(
                **{
                    name: np.where(is_moving, values, 0.0)
                    for name, values in by_part._asdict().items()
                }
            )
        start = _buffer_at_start(measured, rule, traced, parts, memory)
        rounding = rounding_of(measured, rule, parts)
        is_off = ~traced.holds if parts.are_layers else np.zeros(parts.count, bool)
        recurrence = recurrence_of(by_part)
        posterior = _posterior(measured, recurrence, start, rounding, is_off)
        # A part whose sum does not fit is left to its probes.
        is_off |= ~(np.abs(posterior.scores[0]) <= _largest_score(measured))
        if is_off.all() or (is_off.any() and not parts.are_layers):
            return None
        if is_off.any():
            posterior = _posterior(measured, recurrence, start, rounding, is_off)
        n = len(measured.products.value)
        rows = np.stack([posterior.value, *posterior.gains], axis=1)
        paths = states(recurrence, rows, start.tie)
        value, along = paths.displacement[:-1, 0], paths.displacement[:, 1:]
        # The correction by the window's end takes back a part of the rounding errors.
        passed = np.arange(n + 1.0)[:, None]
        undone = along[:, 0] * posterior.weights[0] * rounding.covariance(passed, n)
        variance = displacement_variance(recurrence, posterior, along)
        variance = np.maximum(variance + rounding.variance(passed) - 2 * undone, 0)
        variance = np.where(is_off, np.inf, variance[:-1])
        mixed = -(rows[:n, 1:] * along[:-1]).sum(1)
        on_end, buffer = end_of_buffer(recurrence, posterior), paths.buffer[0]
        return Constrained(
            recurrence,
            posterior,
            on_end,
            Estimate(value, np.sqrt(variance)),
            np.where(is_off, 0.0, mixed),
            _buffer_at_end(measured, posterior, on_end, traced, parts, buffer),
        )


def constrain_total(measured: Measured) -> Posterior | None:
    """Let the products of the gradients meet the recorded product of their sum, if it is known."""
    total, (value, stderr) = measured.total, measured.products
    if total is None or not (np.isfinite(value) & np.isfinite(stderr)).all():
        return None
    known = value, stderr**2, np.ones_like(value)[None], total.value[None]
    variance, untied = total.stderr[None] ** 2, np.zeros(value.shape[-1])
    posterior = constrain(*known, variance, untied)
    # A sum that does not fit is damaged, or is not the sum of these gradients.
    is_off = ~(np.abs(posterior.scores) <= _largest_score(measured))
    return constrain(*known, np.where(is_off, np.inf, variance), untied)


def constrain_displacements(
    measured: Measured, parts: Parts
) -> tuple[Estimate, FloatArray]:
    """Let the products <a, v'> from probes meet the recorded product of their sum."""
    # Returns the products, and what the sum explains of their errors, each (step, result): the
    # covariance of the errors becomes smaller by the product of these gains.
    n, probed = len(measured.products.value), measured.probed
    value, stderr = (column[:n] for column in measured.displacement)
    common = measured.displacement_common[:n]
    if not parts.are_layers:
        value, stderr = (column[:n, None] for column in probed.estimate)
        common = np.zeros_like(value)
    gain, known = np.zeros_like(value), measured.displacement_total
    if known is None:
        return Estimate(value, stderr), gain
    total, total_variance = known.value, known.stderr**2
    if not parts.are_layers:
        total, total_variance = (
            column.sum(keepdims=True) for column in (total, total_variance)
        )
    turning = np.sqrt(np.maximum(stderr**2 - common**2, 0))
    correlation = probed.correlation(slice(0, n), of_layers=value.shape[-1] > 1)
    mixed = turning * correlated(correlation, turning) + common * common.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt(mixed.sum(0) + total_variance)
        scores = (total - value.sum(0)) / spread
        # A sum that does not fit is damaged, or is not the sum of these displacements.
        is_used = np.abs(scores) <= _largest_score(measured)
        is_used &= (spread > 0) & np.isfinite(spread)
        gain = np.where(is_used, mixed / spread, 0.0)
    variance = np.maximum(stderr**2 - gain**2, 0)
    corrected = value + gain * np.where(is_used, scores, 0.0)
    return Estimate(corrected, np.sqrt(variance)), gain


def _largest_score(measured: Measured) -> float:
    """Return the largest residual of a sum, in standard errors, at which it is used."""
    return MAX_SCORE if measured.checks_sums else np.inf


def trace(measured: Measured, rule: Rule, sizes: npt.NDArray[np.int64]) -> Traced:
    """Follow the buffer's products with the basis, and compare the updates with the rule."""
    tables, on_basis = measured.tables, measured.displacement_on_basis
    rank = on_basis.shape[-1]
    gram = measured.fit.products[:, :rank, :rank]
    lengths = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    by_basis = Rule(*(values[..., None] for values in rule))
    d = by_basis.sign * tables["grad_dot_basis"]
    d = d + by_basis.decay * (gram[:, 0] + on_basis[:-1])
    updates = np.diff(on_basis, axis=0)
    pull, push = by_basis.pull, by_basis.push
    a = np.sqrt(measured.displacement_sq)
    x, u, g = (np.sqrt(tables[f"{n}_sq"]) for n in ("param", "update", "grad"))
    spread = UPDATE_RTOL * x * np.minimum(1, 16 / np.sqrt(np.maximum(sizes, 1)))
    slack = TABLE_RTOL * (a[:-1] + a[1:]) + 4 * spread
    slack += RULE_RTOL * (u + np.abs(rule.lr) * (g + rule.decay * x))
    has_buffer = push[0] != 0
    first = np.divide(
        -updates[0] - pull[0] * d[0],
        push[0],
        out=np.zeros_like(d[0]),
        where=has_buffer & (measured.steps.start > 0),
    )
    error = (TABLE_RTOL / 8 * (a[0] + a[1]) + spread[0])[:, None] * lengths
    first_error = np.where(has_buffer, error / push[0], 0)
    fed, last = by_basis.intake * d, first
    buffers = np.empty_like(d)
    for buffer, momentum, taken in zip(buffers, by_basis.momentum, fed, strict=True):
        buffer[:] = last
        last = momentum * last + taken
    difference = np.abs(updates + pull * d + push * buffers)
    agrees = (difference <= slack[..., None] * lengths).all((0, 2))
    # The recorded updates must be the only changes of the parameters.
    along, u_sq = tables["update_dot_displacement"], tables["update_sq"]
    expected = measured.displacement_sq[:-1] + 2 * along + u_sq
    terms = measured.displacement_sq[:-1] + 2 * np.abs(along) + u_sq
    change = np.abs(measured.displacement_sq[1:] - expected)
    agrees &= (change <= 8 * TABLE_RTOL * terms + (4 * spread) ** 2).all(0)
    # Without a buffer, the length of an update is known as well.
    mixed = 2 * rule.sign * rule.decay * tables["grad_dot_param"]
    d_sq = tables["grad_sq"] + mixed + rule.decay**2 * tables["param_sq"]
    gap = np.abs(u - rule.pull * np.sqrt(np.maximum(d_sq, 0)))
    agrees &= ((gap <= slack + UPDATE_RTOL * x) | (rule.push != 0)).all(0)
    is_idle = ((tables["grad_sq"] == 0) & (u_sq == 0)).all(0)
    return Traced(agrees | is_idle, is_idle, first, first_error, last)


def _buffer_at_start(
    measured: Measured,
    rule: Rule,
    traced: Traced,
    parts: Parts,
    memory: Memory | None,
) -> Memory:
    """Return the product of the buffer with v' at the start of a window."""
    push = rule.push[0]
    zeros, now = np.zeros(parts.count), measured.displacement.stderr[0] ** 2
    if measured.steps.start == 0 or not push.any():
        return Memory(zeros, zeros, zeros, now)
    tables = measured.tables
    x, u, g = (np.sqrt(tables[f"{n}_sq"][0]) for n in ("param", "update", "grad"))
    bound = u + np.abs(rule.pull[0]) * (g + rule.decay[0] * x)
    bound = np.divide(bound, push, out=np.zeros_like(bound), where=push != 0)
    largest = parts.sum(bound**2, 0) * parts.sum(measured.residual_sq, 0)
    rank = traced.first.shape[-1]
    if memory is None or rank < 2:
        return Memory(zeros, largest, zeros, now)
    # With the anchors r and r' of the last window and of this one, x* - r' is x* - r minus
    # r' - r, which is the second vector of this window's basis.
    weights = measured.fit.coefficients.copy()
    weights[:, 1] += 1
    shift = parts.sum((weights * traced.first).sum(-1), 0)
    error = parts.sum(((weights * traced.first_error) ** 2).sum(-1), 0)
    variance = memory.variance + error
    is_better = variance < largest
    # The end of the last window is the start of this one, and the same probes tell both products.
    # The residual of this window is what is left of that of the last one, so that the error of its
    # product is a part of the other error, which may have further parts.
    ratio = np.divide(memory.probe_variance, now, out=np.zeros_like(now), where=now > 0)
    tie = memory.tie * np.minimum(1, ratio)
    largest_tie = np.sqrt(
        np.divide(variance, now, out=np.zeros_like(now), where=now > 0)
    )
    return Memory(
        np.where(is_better, memory.value - shift, 0),
        np.where(is_better, variance, largest),
        np.where(is_better, np.clip(tie, -largest_tie, largest_tie), 0),
        now,
    )


def _buffer_at_end(
    measured: Measured,
    posterior: Posterior,
    on_end: FloatArray,
    traced: Traced,
    parts: Parts,
    buffer: FloatArray,
) -> Memory:
    """Return the product of the buffer with x* - r at the end of a window."""
    explained = (measured.fit.coefficients * traced.last).sum(-1)
    spread = times_covariance(posterior, on_end)
    shared, variance = shared_with_end(
        posterior, on_end, spread, on_end, *shared_error(measured)
    )
    variance = np.maximum(variance, 0)
    end = measured.displacement.stderr[-1] ** 2
    tie = np.divide(shared, end, out=np.zeros_like(end), where=end > 0)
    return Memory(buffer + parts.sum(explained, 0), variance, tie, end)


def shared_error(measured: Measured) -> tuple[FloatArray, FloatArray]:
    """Return the variance of the error at the end without a multiple of that at the start, (part,)."""
    # Returns the variance, and the multiple.
    # The same probes tell both products. What is left of the displacements there are the rounding
    # errors of two anchors, which are alike where updates repeat.
    before, after = measured.displacement.stderr[[0, -1]]
    ends = measured.probed.correlation([0, -1], of_layers=after.shape[-1] > 1)
    cosine = ends.matrix[0, 1] * np.sqrt((1 - ends.alone).prod())
    ratio = np.divide(after, before, out=np.zeros_like(after), where=before > 0)
    return (1 - cosine**2 * (before > 0)) * after**2, cosine * ratio


def _posterior(
    measured: Measured,
    recurrence: Recurrence,
    start: Memory,
    rounding: Rounding,
    is_off: npt.NDArray[np.bool_],
) -> Posterior:
    """Constrain the rows of a window."""
    products, displacement = measured.products, measured.displacement
    n, count = products.value.shape
    tie = start.tie
    value = np.vstack([products.value, displacement.value[0], start.value])
    variance = np.vstack(
        [products.stderr**2, displacement.stderr[0] ** 2, start.variance]
    )
    value[-1] -= tie * value[-2]
    variance[-1] = np.maximum(variance[-1] - tie**2 * variance[-2], 0)
    on_end = np.zeros((n + 1, count))
    on_end[-1] = 1
    coefficients = [gradient_of(recurrence, on_end, np.zeros(count), tie)]
    # The part of the error at the end that is that of the start moves to the other side.
    own, alike = shared_error(measured)
    coefficients[0][-2] -= alike
    sums = [displacement.value[-1] - alike * displacement.value[0]]
    sum_variance = [np.where(is_off, np.inf, own + rounding.variance(n))]
    if measured.total is not None:
        of_steps = np.arange(n + 2)[:, None] < n
        coefficients.append(np.broadcast_to(of_steps, value.shape).astype(np.float64))
        sums.append(measured.total.value)
        sum_variance.append(measured.total.stderr**2)
    return constrain(
        value,
        variance,
        np.stack(coefficients),
        np.stack(sums),
        np.stack(sum_variance),
        tie,
    )
