"""Test the compiled loops that read gradients and parameters."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.trajstore.tracking.random_walk import spec_of
from trajstore.format.arrays import table_columns
from trajstore.format.layout import Layout
from trajstore.tracking.backends.cpu import block_loops, compiling, measuring
from trajstore.tracking.backends.cpu.backend import CPUBackend
from trajstore.tracking.tracker import Tracker

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


@pytest.mark.parametrize("last", [5.0, np.nan], ids=["large", "unknown"])
def test_products_with_a_gradient_that_does_not_exist_are_0(last: float):
    spec = spec_of({"idle": (40,)}, sketch_bits=64, probes=8)
    parameter = torch.full((40,), 3.0)
    layout = Layout(spec.names, spec.shapes)
    tracker = Tracker([parameter], layout, spec, backend=CPUBackend)
    tracker.start()
    tracker.previous_gradient = torch.full((layout.size,), last)
    row = {name: values[0] for name, values in tracker.allocate(1).items()}
    with torch.no_grad():
        parameter += torch.tensor([np.inf] + 39 * [2.0])
    tracker.before_step(0, row)
    columns, table = table_columns(spec), row["tables"][0]
    for name in ("grad_dot_previous", "grad_sq", "grad_dot_displacement"):
        assert table[columns[name]].tolist() == [0]
    assert table[columns["displacement_sq"]].isinf().all()
    assert (tracker.previous_gradient[:40] == 0).all()


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
