"""Test ``analyzers._engine.arrays.crowding``; `test_geometry` compares with enumeration."""

import tracemalloc

import numpy as np

from analyzers._engine.arrays.crowding import (
    bucket_densities,
    bucket_energies,
    interval_sums,
)

WIDTH = 65143


def test_memory_is_linear_in_the_number_of_layers():
    """A table of pairs of these layers alone would need 140 MB."""
    n = 3000
    offsets, sizes = 1024 * np.arange(n), np.full(n, 700)
    n_rows = -(-1024 * n // WIDTH)
    squares = np.zeros((n_rows, WIDTH), np.float32)
    squares.reshape(-1)[: 1024 * n].reshape(n, 1024)[:, :700] = 1
    density = np.ones((2, n))
    tracemalloc.start()
    try:
        energies = bucket_energies(
            interval_sums(squares, offsets, sizes), 0, offsets, sizes, WIDTH
        )
        crowd = energies @ bucket_densities(density, offsets, sizes, WIDTH).T
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * squares.nbytes
    np.testing.assert_array_equal(energies.sum(1), 700)
    # Every element shares its bucket with the elements above and below it, and itself.
    per_bucket = (squares > 0).sum(0)
    expected = per_bucket[np.arange(700)].sum()
    np.testing.assert_allclose(crowd[0], expected)
