"""Test ``analyzers._engine.slices``."""

from analyzers._engine.slices import SEGMENT, joined


def test_neighbouring_slices_are_joined_while_they_fit_into_a_segment():
    n = SEGMENT // 2
    parts = [slice(0, n), slice(n, 2 * n), slice(2 * n, 4 * n), slice(4 * n, 4 * n + 3)]
    assert joined(parts) == [
        (slice(0, 2 * n), slice(0, 2)),
        (slice(2 * n, 4 * n), slice(2, 3)),
        (slice(4 * n, 4 * n + 3), slice(3, 4)),
    ]
    assert joined([]) == []
