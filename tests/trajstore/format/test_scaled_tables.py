"""Test `trajstore.format.scaled_tables`."""

import numpy as np
import pytest

from tests.trajstore.handmade import small_spec
from trajstore.format.arrays import n_columns, table_columns
from trajstore.format.scaled_tables import (
    EXPONENTS,
    has_some_exponents,
    in_float32,
    scaled,
    unscaled,
    unscaled_rows,
)

SPEC = small_spec({"a": (3,), "b": (2,)}, scaled=True)


def tables(n_rows: int) -> np.ndarray:
    """Return float64 tables (row, layer, quantity) of ordinary numbers."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((n_rows, 2, n_columns(SPEC)))


def read_back(wide: np.ndarray) -> np.ndarray:
    """Store tables with powers of two, and read them."""
    stored, exponents = scaled(wide, SPEC)
    assert stored.dtype == np.float32
    columns = {n: np.array([row[n] for row in exponents]) for n in EXPONENTS}
    return unscaled(stored, columns, SPEC)


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        (1.0, True),
        (0.0, True),
        (1e-37, True),
        (3e38, True),
        (np.inf, True),
        (np.nan, True),
        (1e-39, False),
        (-1e-60, False),
        (1e39, False),
        (-1e60, False),
    ],
)
def test_rows_with_products_out_of_range_are_found(value: float, fits: bool):
    wide = tables(3)
    wide[1, 0, 4] = value
    narrow, fit = in_float32(wide)
    assert narrow.dtype == np.float32
    np.testing.assert_array_equal(fit, [True, fits, True])


@pytest.mark.parametrize("gradient", [1e-37, 1e-30, 1e-19, 1.0, 1e19, 1e30, 1e37])
def test_products_are_read_back_in_the_precision_of_float32(gradient: float):
    wide = tables(4)
    columns = table_columns(SPEC)
    for name in ("grad_sq", "grad_dot_previous"):
        wide[..., columns[name]] *= gradient**2
    for name in ("grad_dot_displacement", "grad_dot_basis", "grad_dot_param"):
        wide[..., columns[name]] *= gradient
    # One layer may be much smaller than the other.
    wide[2, 1, columns["grad_sq"]] = 1e-3 * gradient**2
    np.testing.assert_allclose(read_back(wide), wide, rtol=2.0**-24)


def test_a_small_layer_is_kept_next_to_a_large_one():
    wide = tables(1)
    grad_sq = table_columns(SPEC)["grad_sq"]
    wide[0, :, grad_sq] = [[1.0], [1e-60]]
    np.testing.assert_allclose(read_back(wide), wide, rtol=2.0**-24)


def test_infinities_and_nan_stay():
    wide = tables(2)
    wide[0, 0, :3] = [np.inf, np.nan, 1e60]
    wide[1] = np.nan
    np.testing.assert_allclose(read_back(wide), wide, rtol=2.0**-24)


def test_rows_without_exponents_are_read_as_they_are():
    stored = tables(2).astype(np.float32)
    missing = dict.fromkeys(EXPONENTS, np.full(2, np.nan))
    np.testing.assert_array_equal(unscaled(stored, missing, SPEC), stored)


def test_hostile_exponents_are_bounded():
    hostile = dict.fromkeys(EXPONENTS, np.array([1e300, -np.inf]))
    with np.errstate(over="ignore"):
        assert unscaled(tables(2), hostile, SPEC).shape == (2, 2, n_columns(SPEC))


def test_scalars_of_rows_lose_their_exponents():
    wide = tables(2) * 1e-60
    stored, exponents = scaled(wide, SPEC)
    scalars = [{"lr": 0.1, **row} for row in exponents]
    read, others = unscaled_rows(stored, scalars, SPEC)
    np.testing.assert_allclose(read, wide, rtol=2.0**-24)
    assert others == [{"lr": 0.1}, {"lr": 0.1}]


def test_exponents_come_together():
    assert not has_some_exponents(["lr"])
    assert not has_some_exponents(["lr", *EXPONENTS])
    assert has_some_exponents(["lr", EXPONENTS[1]])
