"""Array functions of the engine; they may import NumPy, SciPy and `trajstore.sketch`."""
