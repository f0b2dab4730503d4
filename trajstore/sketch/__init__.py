"""The estimator in NumPy: signs, folds, rotations, 1-bit codes and probes."""
