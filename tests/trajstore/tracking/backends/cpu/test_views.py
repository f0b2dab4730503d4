"""Test how compiled loops view and change memory."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")

from trajstore.tracking.backends.cpu import compiling, views


def change(doubles: npt.NDArray[Any], floats: npt.NDArray[Any]) -> Any:
    """Clear, add to and read elements of arrays with several axes."""
    views.erase(doubles, 2, 3)
    views.add_to(doubles, 5, 0.25)
    views.erase(floats, 0, views.quotient(11, 4))
    part = views.part_of(floats, 1, 4)
    return views.at(doubles, 5), len(part), part[3]


def test_elements_are_counted_over_all_axes():
    doubles = np.arange(1.0, 13).reshape(2, 3, 2)
    floats = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    assert compiling.jit(change)(doubles, floats) == (6.25, 4, 5)
    assert doubles.ravel().tolist() == [1, 2, 0, 0, 0, 6.25, *range(7, 13)]
    assert floats.ravel().tolist() == [0, 0, 3, 4, 5, 6]


def shape_of(array: npt.NDArray[Any]) -> Any:
    """Return shape, strides and size of a part of an array."""
    part = views.part_of(array, 3, 5)
    return part.shape, part.strides, part.size, part.nbytes


def test_a_part_describes_itself():
    assert compiling.jit(shape_of)(np.zeros((4, 3))) == ((5,), (8,), 5, 40)
