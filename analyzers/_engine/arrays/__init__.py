"""Array functions of the engine; they may import NumPy, SciPy, Numba and `trajstore.sketch`."""
