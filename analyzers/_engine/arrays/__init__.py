"""Array functions of the engine: NumPy and SciPy only."""
