"""How the errors of the steps of an epoch add up in a mean."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from analyzers._engine.arrays.probe_errors import Correlation, correlated
from analyzers._engine.arrays.recurrence import Recurrence, gradient_of, states
from analyzers._engine.arrays.window_sums import Posterior, times_covariance

FloatArray = npt.NDArray[np.floating[Any]]


class ErrorModel(NamedTuple):
    """The errors of a window's products, before they are multiplied by derivatives."""

    # The last axis separates parts, which add up to results along `sum_parts`.
    product_variance: FloatArray  # of <g, v'>, (step, part); used without `posterior`
    posterior: Posterior | None
    # None if the gradients say nothing of the displacements.
    recurrence: Recurrence | None
    # Standard errors of <a, v'> from the probes, (step, result): of the part of the error that
    # correlates from step to step, and of the part that all steps share.
    probe_stderr: FloatArray
    probe_common: FloatArray
    probe_gain: FloatArray  # what is known better of it, see `covariance_with_sum`
    probe_share: FloatArray  # weight of the probes in <a, v'>, (step, result)
    probe_correlation: Correlation  # of the first of these parts


class RowSums(NamedTuple):
    """Sums of errors as combinations of the rows of `Posterior`, (row, quantity, part)."""

    rows: FloatArray  # derivatives of the sums by the rows
    spread: FloatArray  # their product with the covariance of the rows


def covariance_with_sum(
    model: ErrorModel,
    by_product: FloatArray,
    by_displacement: FloatArray,
    sums: RowSums | None,
) -> FloatArray:
    """Return the covariance of each error with the sum of all, (step, quantity, result)."""
    # The error of a quantity is `by_product` times the error of <g, v'>, plus
    # `by_displacement` times the error of <a, v'>; both are (step, quantity, result), and 0
    # for steps that are left out of the sum. `sums` are their `row_sums`.
    share, n_results = model.probe_share[:, None], by_product.shape[-1]
    if model.posterior is None:
        variance: FloatArray = model.product_variance
        if n_results == 1:
            variance = variance.sum(1, keepdims=True)
        total: FloatArray = by_product**2 * variance[:, None]
    elif sums is None:
        shape = (*by_product.shape[:2], model.posterior.value.shape[-1])
        vector = np.broadcast_to(by_product, shape)
        total = vector * times_covariance(model.posterior, vector)
        if n_results == 1:
            total = total.sum(-1, keepdims=True)
    else:
        total = _telescoped(model, by_product, by_displacement, sums.spread)
    scaled = by_displacement * share * model.probe_stderr[:, None]
    mixed = correlated(model.probe_correlation, scaled)
    # A known sum of the products explains the product of the gains.
    gained = by_displacement * share * model.probe_gain[:, None]
    common = by_displacement * share * model.probe_common[:, None]
    total = total + scaled * mixed + common * common.sum(0)
    result: FloatArray = total - gained * gained.sum(0)
    return result


def row_sums(
    model: ErrorModel, by_product: FloatArray, by_displacement: FloatArray
) -> RowSums | None:
    """Return the sums of errors, or None if the gradients say nothing of the displacements."""
    posterior, recurrence = model.posterior, model.recurrence
    if posterior is None or recurrence is None:
        return None
    n, n_quantities, _ = by_product.shape
    shape = (n, n_quantities, recurrence.rule.lr.shape[-1])
    on_displacement = np.zeros((n + 1, *shape[1:]))
    on_displacement[:n] = by_displacement * (1 - model.probe_share[:, None])
    zeros = np.zeros(shape[1:])
    rows = gradient_of(recurrence, on_displacement, zeros, posterior.tie)
    rows[:n] += by_product
    return RowSums(rows, times_covariance(posterior, rows))


def _telescoped(
    model: ErrorModel,
    by_product: FloatArray,
    by_displacement: FloatArray,
    spread: FloatArray,
) -> FloatArray:
    """Return the part of `covariance_with_sum` that the gradients' sketches cause."""
    assert model.posterior is not None
    assert model.recurrence is not None
    n, _, n_results = by_product.shape
    along = states(model.recurrence, spread, model.posterior.tie).displacement[:n]
    on_displacement = by_displacement * (1 - model.probe_share[:, None])
    total = by_product * spread[:n] + on_displacement * along
    return total.sum(-1, keepdims=True) if n_results == 1 else total
