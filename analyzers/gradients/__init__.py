"""Gradients compared with each other: zigzag, lags, layers and branches."""
