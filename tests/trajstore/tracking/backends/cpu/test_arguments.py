"""Test how kernels read arguments at an address, in one thread and in several."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from numba import float32, float64, int64

from trajstore.tracking.backends.cpu import compiling
from trajstore.tracking.backends.cpu.arguments import Arguments, arguments_at

TYPES = {"matrix": float32[:, ::1], "n": int64, "cube": float64[:, :, ::1]}

_values_at = arguments_at(*TYPES.values())


@compiling.compiled(int64, float64[::1])
def read(address: int, found: Any) -> None:
    matrix, n, cube = _values_at(address)
    found[0], found[1] = matrix.shape
    found[2], found[3], found[4] = cube.shape
    found[5] = n
    # Elements of every row, and of every plane.
    found[6] = matrix[1, 2] + 10 * matrix[0, 1]
    found[7] = cube[1, 0, 1] + 10 * cube[0, 2, 0]


def arguments(**changes: Any) -> Arguments:
    values = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "n": 7,
        "cube": np.arange(24.0).reshape(2, 4, 3),
    }
    return Arguments(TYPES, **values | changes)


def found_by_kernel(given: Arguments) -> list[float]:
    found = np.zeros(8)
    read(given.address, found)
    return found.tolist()


def test_a_kernel_reads_arguments_at_an_address():
    assert found_by_kernel(arguments()) == [2, 3, 2, 4, 3, 7, 5 + 10, 13 + 60]


def test_an_argument_can_be_replaced():
    given = arguments()
    given.set("n", 9)
    given.set("matrix", np.arange(8, dtype=np.float32).reshape(2, 4))
    assert found_by_kernel(given) == [2, 4, 2, 4, 3, 9, 6 + 10, 13 + 60]


def test_an_array_can_begin_at_another_address():
    given, other = arguments(), np.arange(6, 12, dtype=np.float32).reshape(2, 3)
    given.place_of("matrix")[0] = other.ctypes.data
    assert found_by_kernel(given)[6] == 11 + 10 * 7


def test_arguments_keep_their_arrays():
    given = arguments()
    for size in range(3, 40):
        given.set("matrix", np.full((2, size), size, np.float32))
        np.full((2, size), -1, np.float32)
        assert found_by_kernel(given)[6] == 11 * size


@pytest.mark.parametrize(
    "changes",
    [
        {"matrix": np.zeros((2, 3))},
        {"matrix": np.zeros(3, np.float32)},
        {"matrix": np.zeros((3, 2), np.float32).T},
        {"n": np.zeros(1, np.int64)},
        {"cube": 3},
    ],
    ids=["dtype", "dimensions", "order", "array for integer", "integer for array"],
)
def test_arguments_of_another_kind_are_refused(changes: dict[str, Any]):
    (name,) = changes
    with pytest.raises(AssertionError, match=name):
        arguments(**changes)


COUNTS = {"counts": int64[::1]}

_counts_at = arguments_at(*COUNTS.values())


@compiling.compiled_for_parts
def count(part: int, address: int) -> None:
    (counts,) = _counts_at(address)
    counts[part] += part + 1


compiling.compile_waiting()


def test_every_part_runs_once_in_threads():
    counts = np.zeros(5, np.int64)
    given = Arguments(COUNTS, counts=counts)
    compiling.run_in_threads(count, 4, given.address)
    assert counts.tolist() == [1, 2, 3, 4, 0]
    count(4, given.address)
    assert counts.tolist() == [1, 2, 3, 4, 5]
