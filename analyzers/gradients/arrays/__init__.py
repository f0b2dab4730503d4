"""Array functions for comparing gradients; they may import NumPy and SciPy."""
