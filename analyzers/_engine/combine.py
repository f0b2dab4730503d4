"""Combine exact tables, fits and estimated products into the quantities of each step."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.geometry import (
    COVARIANCE,
    DISTANCE_LIMIT,
    QUANTITIES,
    ROUNDED_TIMES,
    ROUNDING_FLOOR,
    USES_SUM,
    Estimate,
    Quantity,
    Sampled,
    decayed,
    distance,
    geometry,
    quantities,
)
from analyzers._engine.arrays.mean_errors import (
    ErrorModel,
    covariance_with_sum,
    row_sums,
)
from analyzers._engine.arrays.window_sums import (
    Posterior,
    Shared,
    row_stderr,
    shared_with_end,
    shared_with_start,
)
from analyzers._engine.at_target import IsAt, is_at, without_target
from analyzers._engine.blas import one_blas_thread
from analyzers._engine.measured_window import (
    Measured,
    gather,
    measure,
    needed_windows,
    rounding,
)
from analyzers._engine.other_options import OtherOptions
from analyzers._engine.rules import Parts, has_rule, rule_of, steps_of_memory
from analyzers._engine.vectors.project import Projected
from analyzers._engine.window_constraint import (
    Constrained,
    Memory,
    constrain_displacements,
    constrain_total,
    constrain_window,
    shared_error,
)
from trajstore.reading.run import Run

FloatArray = npt.NDArray[np.floating[Any]]


OF_INVERSE_DISTANCE: Final = np.array([q in {"gamma", "rsi", "eb"} for q in QUANTITIES])
"""Whether a quantity is divided by the distance, by quantity."""


class Handed(NamedTuple):
    """What the errors of the sums over an epoch's steps share with errors at a window's end."""

    epoch: int
    shared: Shared  # (quantity, part)
    probe_variance: FloatArray  # of <a, v'> at the end, from the probes, (part,)


class Combined(NamedTuple):
    """Estimates of <g, v'> and <a, v'>, and what their errors have in common."""

    products: Estimate  # (step, result)
    displacement: Estimate  # (step, result)
    covariance: FloatArray  # of the two, in a step, (step, result)
    probe_stderr: FloatArray  # of <a, v'> from the probes alone, (step, result)
    probe_gain: FloatArray  # see `constrain_displacements`, (step, result)
    probe_share: FloatArray  # weight of the probes in <a, v'>, (step, result)


def combine(
    run: Run,
    steps: slice,
    chunks: Sequence[slice],
    projected: Sequence[Sequence[Mapping[int, Projected]]],
    *,
    parts: Parts,
    weight_decay: float,
    target_step: int | None = None,
    other: OtherOptions | None = None,
) -> dict[str, FloatArray]:
    """Return the geometry of `steps`, each quantity of shape (step,) or (step, layer)."""
    # `projected` holds the results of `project` for the `chunks` of `needed_windows`. Step
    # `target_step` starts at x*. With `other` options, errors are those of another recording.
    by_window, memory, handed = [], None, None
    epochs = run.stored.epochs
    # Values are not finite where training diverged; the quantities are NaN there.
    with np.errstate(invalid="ignore"), one_blas_thread():
        for window, whole in needed_windows(run, steps).items():
            gathered = gather(run, window, whole, chunks, projected)
            measured = measure(run, window, whole, gathered, parts, other)
            constrained = _constrained(run, measured, parts, memory)
            memory = constrained.memory if constrained else None
            first = max(steps.start, whole.start) - whole.start
            kept = slice(first, min(steps.stop, whole.stop) - whole.start)
            # The errors of the next window may be those of this one by a part.
            passes_on = constrained is not None and steps_of_memory(run) > 0
            passes_on &= whole.stop < run.n_steps
            passes_on = passes_on and bool(epochs[whole.stop] == epochs[whole.stop - 1])
            if kept.start < kept.stop or passes_on:
                values, after = _quantities(
                    run,
                    measured,
                    constrained,
                    parts,
                    handed,
                    weight_decay=weight_decay,
                    at=is_at(run, whole, target_step),
                )
            handed = after if passes_on else None
            if kept.start < kept.stop:
                by_window.append({name: value[kept] for name, value in values.items()})
            # The next window needs the memory.
            del gathered, measured, constrained
    return {
        name: np.concatenate([values[name] for values in by_window])
        for name in by_window[0]
    }


def _constrained(
    run: Run, measured: Measured, parts: Parts, memory: Memory | None
) -> Constrained | None:
    if not has_rule(run) or not measured.has_end:
        return None
    rule = rule_of(run, measured.steps)
    return constrain_window(measured, rule, parts, memory)


def _quantities(
    run: Run,
    measured: Measured,
    constrained: Constrained | None,
    parts: Parts,
    before: Handed | None,
    *,
    weight_decay: float,
    at: IsAt,  # the steps at x*, (step,)
) -> tuple[dict[str, FloatArray], Handed | None]:
    """Return the quantities of the steps of one window, and what their errors hand on."""
    total = constrain_total(measured) if constrained is None else None
    combined = _combined(measured, constrained, total, parts)
    tables, fit, n = measured.tables, measured.fit, len(measured.products.value)
    a_sq, on_basis = measured.displacement_sq[:n], measured.displacement_on_basis[:n]
    v_sq = fit.products[:, run.spec.basis, run.spec.basis]

    def add(values: FloatArray) -> FloatArray:
        return values if parts.are_layers else values.sum(1, keepdims=True)

    low_rank = (tables["grad_dot_basis"] * fit.coefficients).sum(-1)
    known = add(tables["grad_dot_displacement"] - low_rank)
    numerator = Estimate(known - combined.products.value, combined.products.stderr)
    known_product = add((on_basis * fit.coefficients).sum(-1))
    product = Estimate(
        known_product + combined.displacement.value, combined.displacement.stderr
    )
    if measured.is_packed and not run.spec.float64:
        # Float32 rounds in the same way in neighbouring steps: weighing estimates does not help.
        least = add(rounding(a_sq, a_sq, fit, parts))
        product = product._replace(stderr=np.hypot(product.stderr, np.sqrt(least)))
    to_target = distance(add(a_sq), product, add(v_sq[None]))
    squares = add(tables["grad_sq"])
    sampled = Sampled(numerator, squares, np.zeros_like(squares))
    if weight_decay:
        radial = on_basis[..., 0] - fit.products[:, 0, run.spec.basis]
        sampled = decayed(
            sampled,
            to_target,
            param_sq=add(tables["param_sq"]),
            grad_dot_param=add(tables["grad_dot_param"]),
            known_radial=add(radial + (a_sq - v_sq) / 2),
            weight_decay=weight_decay,
        )
    # The error of the distance is proportional to the error of <a, v'>.
    slope = np.divide(
        to_target.stderr,
        product.stderr,
        out=np.zeros_like(product.stderr),
        where=product.stderr > 0,
    )
    found = without_target(quantities(sampled, to_target), at)
    # Rounding is shared by all steps, as errors of the distance nearly are.
    floor = ROUNDING_FLOOR[run.spec.float64]
    length_error = np.hypot(to_target.stderr, floor * to_target.value)
    values = geometry(
        found, combined.products.stderr, length_error, slope * combined.covariance
    )
    values["lolr_stderr"] = np.hypot(
        values["lolr_stderr"], floor * np.abs(values["lolr"])
    )
    model = _error_model(measured, total, constrained, combined)
    on_end = None if constrained is None else constrained.on_end
    mixed, after = _covariances(
        run, measured, model, found, to_target, slope, before=before, on_end=on_end
    )
    values |= dict(zip([f"{q}{COVARIANCE}" for q in QUANTITIES], mixed, strict=True))
    values[USES_SUM] = np.where(combined.probe_share < 1, 1.0, 0.0)
    if not parts.are_layers:
        values = {name: value[:, 0] for name, value in values.items()}
    return values, after


def _combined(
    measured: Measured,
    constrained: Constrained | None,
    met: Posterior | None,
    parts: Parts,
) -> Combined:
    """Combine the sums of a window with its probes, by inverse variance."""
    n = len(measured.products.value)

    def add(values: FloatArray) -> FloatArray:
        return values if parts.are_layers else values.sum(1, keepdims=True)

    probes = Estimate(*(column[:n] for column in measured.displacement))
    if not parts.are_layers:
        probes = Estimate(*(column[:n, None] for column in measured.probed.estimate))
    zeros = np.zeros_like(probes.value)
    if constrained is None:
        value, stderr = measured.products
        if met is not None:
            value, stderr = met.value, row_stderr(met)
        products = Estimate(add(value), np.sqrt(add(stderr**2)))
        displacement, gain = constrain_displacements(measured, parts)
        return Combined(products, displacement, zeros, probes.stderr, gain, zeros + 1)
    posterior = constrained.posterior
    variance = row_stderr(posterior)[:n] ** 2
    products = Estimate(add(posterior.value[:n]), np.sqrt(add(variance)))
    summed = constrained.displacement
    sum_variance = add(summed.stderr**2)
    if parts.are_layers:
        # The sums of a layer tell more than what is usual of layers.
        has_sums = np.isfinite(sum_variance)
        probes = Estimate(
            *(
                np.where(has_sums, column[:n], guessed)
                for column, guessed in zip(
                    measured.displacement_measured, probes, strict=True
                )
            )
        )
    probe_variance = probes.stderr**2
    total = sum_variance + probe_variance
    share = np.divide(sum_variance, total, out=np.zeros_like(total), where=total > 0)
    share = np.where(np.isinf(sum_variance), 1.0, share)
    # The product at the start of the window comes from the same probes.
    share[0] = np.where(np.isinf(sum_variance[0]), 1.0, 0.0)
    sharpened = share * probes.value + (1 - share) * add(summed.value)
    value = np.where(share < 1, sharpened, probes.value)
    rest = np.where(share < 1, (1 - share) ** 2 * sum_variance, 0.0)
    return Combined(
        products,
        Estimate(value, np.sqrt(share**2 * probe_variance + rest)),
        (1 - share) * add(constrained.covariance),
        probes.stderr,
        zeros,
        share,
    )


def _error_model(
    measured: Measured,
    total: Posterior | None,
    constrained: Constrained | None,
    combined: Combined,
) -> ErrorModel:
    n, probed = len(measured.products.value), measured.probed
    common = np.zeros_like(combined.probe_stderr)
    if common.shape[-1] == measured.displacement_common.shape[-1]:
        common = measured.displacement_common[:n]
    turning = np.sqrt(np.maximum(combined.probe_stderr**2 - common**2, 0))
    of_layers = common.shape[-1] > 1
    return ErrorModel(
        product_variance=measured.products.stderr**2,
        posterior=total if constrained is None else constrained.posterior,
        recurrence=None if constrained is None else constrained.recurrence,
        probe_stderr=np.nan_to_num(turning),
        probe_common=np.nan_to_num(common),
        probe_gain=combined.probe_gain,
        probe_share=np.nan_to_num(combined.probe_share),
        probe_correlation=probed.correlation(slice(0, n), of_layers=of_layers),
    )


def _covariances(
    run: Run,
    measured: Measured,
    model: ErrorModel,
    found: dict[str, Quantity],
    to_target: Estimate,
    slope: FloatArray,
    *,
    before: Handed | None,
    on_end: FloatArray | None,  # see `Constrained`
) -> tuple[FloatArray, Handed | None]:
    """Return the covariances of errors with their sum over an epoch, and what they hand on."""
    # What errors share with those of the window before counts twice, evenly for all steps.
    # The numerator is what is known minus <g, v'>, and |x - x*|^2 contains -2 <a, v'>.
    by_product = np.stack([-found[q].by_product for q in QUANTITIES], 1)
    by_displacement = np.stack([-found[q].by_distance * slope for q in QUANTITIES], 1)
    is_left_out = to_target.stderr > DISTANCE_LIMIT * to_target.value
    is_left_out = is_left_out[:, None] & OF_INVERSE_DISTANCE[:, None]
    both = np.stack([by_product, by_displacement])
    both[~np.isfinite(both) | is_left_out] = 0
    sizes = [ROUNDED_TIMES.get(q, 1) * np.abs(found[q].value) for q in QUANTITIES]
    floors = ROUNDING_FLOOR[run.spec.float64] * np.stack(sizes, 1)
    floors[~np.isfinite(floors) | is_left_out] = 0
    epochs = run.stored.epochs[measured.steps]
    total, after = np.zeros_like(by_product), None
    now = measured.displacement.stderr[0] ** 2
    for epoch in np.unique(epochs):
        is_in = (epochs == epoch)[:, None, None]
        of_product, of_displacement = both if is_in.all() else np.where(is_in, both, 0)
        sums = row_sums(model, of_product, of_displacement)
        total += covariance_with_sum(model, of_product, of_displacement, sums)
        # Rounding of a window's vectors is the same in all of its steps.
        rounded = np.where(is_in, floors, 0)
        total += rounded * rounded.sum(0)
        if sums is None or model.posterior is None or on_end is None:
            continue
        if before is not None and before.epoch == epoch:
            start = _at_start(before, now)
            twice = 2 * shared_with_start(model.posterior, sums.spread, start)
            if total.shape[-1] == 1:
                twice = twice.sum(-1, keepdims=True)
            total += np.where(is_in, twice / is_in.sum(), 0)
        if epoch == epochs[-1]:
            shared = shared_with_end(
                model.posterior, *sums, on_end, *shared_error(measured)
            )
            end = measured.displacement.stderr[-1] ** 2
            after = Handed(int(epoch), shared, end)
    return np.moveaxis(total, 1, 0), after


def _at_start(before: Handed, variance: FloatArray) -> Shared:
    """Return what is shared with a window's start, of whose product the probes have this variance."""
    # The residual of a window is what is left of that of the last one, see `constrain_window`.
    ratio = np.divide(
        variance,
        before.probe_variance,
        out=np.zeros_like(variance),
        where=before.probe_variance > 0,
    )
    displacement, buffer = before.shared
    return Shared(displacement * np.minimum(1, ratio), buffer)
