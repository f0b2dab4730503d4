"""Test the compiled loops that read gradients and parameters."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from trajstore.tracking.backends.cpu import block_loops, compiling, measuring

update_products = compiling.standalone(block_loops.update_products)
sum_of_bits = compiling.standalone(block_loops.sum_of_bits)


def normal(*shape: int) -> Any:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def test_an_update_near_the_anchor_is_exact():
    """(x - r) - a loses nothing there, while x - (r + a) would round r + a."""
    anchor = (1 + normal(1024) * 1e-3).astype(np.float32)
    displacement = (normal(1024) * 1e-7).astype(np.float32)
    parameter = np.nextafter(anchor, np.float32(2))
    square, product = update_products(parameter, anchor, displacement)
    update = parameter.astype(float) - anchor - displacement
    # float32 sums of 1024 numbers.
    np.testing.assert_allclose(square, (update**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(product, (update * displacement).sum(), rtol=1e-4)


@pytest.mark.parametrize("n_parts", [1, 2, 5])
def test_parts_are_added_up_in_their_columns(n_parts: int):
    sums = np.random.default_rng(n_parts).standard_normal((n_parts, 3, 2))
    table, total = np.full((3, 6), 7.0), np.ones(3)
    expected = sums.sum(0)
    measuring.add_up(sums, 3, table, 4, total)
    np.testing.assert_array_equal(table[:, 3:5], expected)
    np.testing.assert_array_equal(table[:, [0, 1, 2, 5]], 7)
    stored = expected[:, 1].astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(total, 1 + stored)


def test_the_checksum_changes_with_a_last_bit_and_with_an_exchange():
    words = normal(1024).view(np.int32)
    before = sum_of_bits(words, 0)
    words[77] ^= 1
    assert sum_of_bits(words, 0) != before
    words[77] ^= 1
    words[[3, 500]] = words[[500, 3]]
    assert sum_of_bits(words, 0) != before
    words[[3, 500]] = words[[500, 3]]
    assert sum_of_bits(words, 0) == before
    assert sum_of_bits(words, 1024) != before
