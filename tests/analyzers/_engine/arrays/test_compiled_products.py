"""Compare ``analyzers._engine.arrays.compiled_products`` with the same products in NumPy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import analyzers
from analyzers._engine.arrays import compiled_products
from analyzers._engine.vectors import fit
from trajstore.reading.run import open_run

PRECISION = 1e-13


@pytest.mark.parametrize(("start", "stop"), [(0, 3000), (5, 6), (7, 2055), (9, 9)])
def test_products_equal_those_in_numpy(start: int, stop: int):
    vectors = np.random.default_rng(0).standard_normal((5, 3000)).astype(np.float32)
    expected, found = np.ones((2, 5, 5))
    fit.add_products(vectors, start, stop, expected)
    compiled_products.add_products(vectors, start, stop, found)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3000 * PRECISION)
    assert (np.triu(found, 1) == np.triu(np.ones((5, 5)), 1)).all()


def test_products_of_values_that_are_not_finite_are_nan():
    vectors = np.ones((2, 2000), np.float32)
    vectors[1, 1500], found = np.nan, np.zeros((2, 2))
    compiled_products.add_products(vectors, 0, 2000, found)
    np.testing.assert_array_equal(found, [[2000, 0], [np.nan, np.nan]])


def test_analyses_of_large_runs_agree(
    example_run: Path, monkeypatch: pytest.MonkeyPatch
):
    run = open_run(example_run)
    expected = analyzers.path_geometry(run).compute()
    calls, product = [], compiled_products.add_products

    def counted(*arguments: Any) -> None:
        calls.append(arguments)
        product(*arguments)

    monkeypatch.setattr(compiled_products, "add_products", counted)
    monkeypatch.setattr(fit, "COMPILED_FROM", 1)
    found = analyzers.path_geometry(run).compute()
    assert calls
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-9)
