"""Test that numbers are written as ranges."""

import pytest

from trajstore.reading.ranges import MAX_RANGES, as_ranges


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([3], "3"),
        ([7, 2, 1, 0, 2], "0-2, 7"),
        (range(0, 2 * MAX_RANGES, 2), "0, 2, 4, 6, 8, 10, 12, 14"),
        (range(0, 2 * MAX_RANGES + 4, 2), "0, 2, 4, 6, 8, 10, 12, 14, and 2 more"),
    ],
)
def test_numbers_are_written_as_ranges(numbers: list[int], text: str):
    assert as_ranges(numbers) == text
