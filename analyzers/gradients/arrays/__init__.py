"""Array functions of the comparisons of gradients; they may import NumPy and SciPy."""
