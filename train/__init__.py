"""Experiments: models, data, training loops, and the exact two-run protocol."""
