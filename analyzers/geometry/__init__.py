"""RSI, EB, gamma and distances of a path, their means, theory and null models."""
