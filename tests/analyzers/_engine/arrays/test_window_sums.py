"""Test the arithmetic of window sums against dense covariances."""

import numpy as np
import pytest

from analyzers._engine.arrays import recurrence as recurrence_module
from analyzers._engine.arrays.recurrence import (
    Rule,
    gradient_of,
    recurrence_of,
    states,
)
from analyzers._engine.arrays.window_sums import (
    Shared,
    constrain,
    displacement_variance,
    end_of_buffer,
    shared_with_end,
    shared_with_start,
    times_covariance,
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


@pytest.mark.parametrize("block_steps", [4, 128])
@pytest.mark.parametrize("part", range(len(TIES)), ids=[f"tie={t:g}" for t in TIES])
def test_a_buffer_that_shares_errors_with_the_start_is_followed_exactly(
    part: int, block_steps: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recurrence_module, "BLOCK_STEPS", block_steps)
    rng = np.random.default_rng(1)
    value = rng.standard_normal((STEPS + 2, len(TIES)))
    variance = rng.uniform(0.5, 2.0, value.shape)
    sum_variance, end, alike = rng.uniform(0.1, 1.0, (3, len(TIES)))
    # The rows of `constrain` are independent: y, A_0 and M_0 - tie A_0.
    independent = value.copy()
    independent[-1] -= TIES * value[-2]
    on_end = np.zeros((STEPS + 1, len(TIES)))
    on_end[-1] = 1
    recurrence = recurrence_of(rule())
    weights = gradient_of(recurrence, on_end, np.zeros(len(TIES)), TIES)
    weights[-2] -= alike
    known = end - alike * value[-2]
    found = constrain(
        *(independent, variance, weights[None], known[None], sum_variance[None]), TIES
    )

    # The same with dense matrices: errors of y, A_0, M_0 and of the known A at the end, which are
    # those of independent numbers.
    mixed = np.eye(STEPS + 3)
    mixed[-2, -3], mixed[-1, -3] = TIES[part], alike[part]
    sources = np.append(variance[:, part], sum_variance[part])
    joint = mixed @ np.diag(sources) @ mixed.T
    path = dense(part)
    c = np.append(path[-1, 0], -1)
    total, gain = c @ joint @ c, joint @ c
    measured = np.append(value[:, part], end[part])
    mean = (measured - gain * (c @ measured) / total)[:-1]
    joint = joint - np.outer(gain, gain) / total
    after = joint[:-1, :-1]

    a = states(recurrence, found.value, TIES)
    np.testing.assert_allclose(a.displacement[:, part], path[:, 0] @ mean, rtol=1e-10)
    np.testing.assert_allclose(a.buffer[part], path[-1, 1] @ mean, rtol=1e-10)
    along = states(recurrence, found.gains[0], TIES).displacement[:, None]
    spread = displacement_variance(recurrence, found, along)[:, part]
    expected = np.einsum("ki,ij,kj->k", path[:, 0], after, path[:, 0])
    np.testing.assert_allclose(spread, expected, rtol=1e-10)
    on_buffer = end_of_buffer(recurrence, found)
    shared, variances = shared_with_end(
        found,
        on_buffer,
        times_covariance(found, on_buffer),
        on_buffer,
        sum_variance,
        alike,
    )
    last = path[-1, 1]
    np.testing.assert_allclose(variances[part], last @ after @ last, rtol=1e-10)
    # The error of the end before it was corrected is a linear function of the sources, too.
    given = mixed - np.outer(gain, c @ mixed) / total
    expected = (np.append(last, 0) @ given) @ (sources * mixed[-1])
    np.testing.assert_allclose(shared[part], expected, rtol=1e-10)

    # An earlier error shares this much with A_0 and with M_0.
    before = Shared(*rng.uniform(-1, 1, (2, len(TIES))))
    on_path = rng.uniform(-1, 1, (STEPS + 1, len(TIES)))
    rows = gradient_of(recurrence, on_path, np.zeros(len(TIES)), TIES)
    own = before.buffer - TIES * before.displacement
    with_sources = np.zeros(STEPS + 3)
    with_sources[-3:-1] = before.displacement[part], own[part]
    expected = np.append(on_path[:, part] @ path[:, 0], 0) @ given @ with_sources
    np.testing.assert_allclose(
        shared_with_start(found, times_covariance(found, rows), before)[part],
        expected,
        rtol=1e-10,
    )


def test_parts_with_the_same_settings_share_matrices():
    separate = rule()
    rows = np.random.default_rng(3).standard_normal((STEPS + 2, 2, len(TIES)))
    expected = states(recurrence_of(separate), rows, TIES)
    # The first and the last part now have the same settings.
    order = [0, 1, 0]
    mixed = recurrence_of(Rule(*(values[:, order] for values in separate)))
    assert [len(blocks) for blocks in mixed.blocks] == [2]
    found = states(mixed, rows, TIES)
    np.testing.assert_allclose(
        found.displacement[..., :2], expected.displacement[..., :2], rtol=1e-12
    )
    alone = recurrence_of(Rule(*(values[:, :1] for values in separate)))
    last = states(alone, rows[..., 2:], TIES[2:])
    np.testing.assert_allclose(
        found.displacement[..., 2:], last.displacement, rtol=1e-12
    )
    np.testing.assert_allclose(found.buffer[..., 2:], last.buffer, rtol=1e-12)
