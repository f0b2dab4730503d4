"""Test the arithmetic of window sums against dense covariances."""

import numpy as np
import pytest

from analyzers._engine.arrays.window_sums import (
    Rule,
    buffer_errors,
    constrain,
    displacement_variance,
    gradient_of,
    states,
)

STEPS = 6
TIES = np.array([0.0, 0.7, -1.3])


def rule() -> Rule:
    """Return momentum with weight decay and a rate that changes, (step, part)."""
    rng = np.random.default_rng(0)
    columns = rng.uniform(0.5, 1.0, (7, STEPS, len(TIES)))
    return Rule(*columns)._replace(
        decay=0.1 * columns[5], sign=np.ones_like(columns[6])
    )


def dense(part: int) -> np.ndarray:
    """Return the matrix from y, A_0 and M_0 to (A, M) before every step and at the end."""
    r = Rule(*(values[:, part] for values in rule()))
    a, m = np.eye(STEPS + 2)[STEPS], np.eye(STEPS + 2)[STEPS + 1]
    rows = [(a, m)]
    for k in range(STEPS):
        d = r.sign[k] * np.eye(STEPS + 2)[k] + r.decay[k] * a
        after = r.momentum[k] * m + r.intake[k] * d
        a, m = a - r.lr[k] * (r.direct[k] * d + r.buffered[k] * after), after
        rows.append((a, m))
    return np.array(rows)


@pytest.mark.parametrize("part", range(len(TIES)), ids=[f"tie={t:g}" for t in TIES])
def test_a_buffer_that_shares_errors_with_the_start_is_followed_exactly(part: int):
    rng = np.random.default_rng(1)
    value = rng.standard_normal((STEPS + 2, len(TIES)))
    variance = rng.uniform(0.5, 2.0, value.shape)
    sum_variance, end = rng.uniform(0.1, 1.0, (2, len(TIES)))
    # The rows of `constrain` are independent: y, A_0 and M_0 - tie A_0.
    independent = value.copy()
    independent[-1] -= TIES * value[-2]
    on_end = np.zeros((STEPS + 1, len(TIES)))
    on_end[-1] = 1
    weights = gradient_of(rule(), on_end, np.zeros(len(TIES)), TIES)
    found = constrain(
        *(independent, variance, weights[None], end[None], sum_variance[None]), TIES
    )

    # The same with dense matrices, as a Gaussian of y, A_0 and M_0 whose sum A at the end is known.
    mixed = np.eye(STEPS + 2)
    mixed[-1, -2] = TIES[part]
    before = mixed @ np.diag(variance[:, part]) @ mixed.T
    path = dense(part)
    c = path[-1, 0]
    total = c @ before @ c + sum_variance[part]
    mean = value[:, part] + before @ c * (end[part] - c @ value[:, part]) / total
    after = before - np.outer(before @ c, before @ c) / total

    a = states(rule(), found.value, TIES)
    np.testing.assert_allclose(a.displacement[:, part], path[:, 0] @ mean, rtol=1e-10)
    np.testing.assert_allclose(a.buffer[:, part], path[:, 1] @ mean, rtol=1e-10)
    spread = displacement_variance(rule(), found)[:, part]
    expected = np.einsum("ki,ij,kj->k", path[:, 0], after, path[:, 0])
    np.testing.assert_allclose(spread, expected, rtol=1e-10)
    variances, passed = buffer_errors(rule(), found)
    last = path[-1, 1]
    np.testing.assert_allclose(variances[part], last @ after @ last, rtol=1e-10)
    # An error of the known end moves the buffer by this much.
    np.testing.assert_allclose(passed[part], last @ before @ c / total, rtol=1e-10)
