"""The estimator on the training device; every module has a NumPy twin in `trajstore.sketch`."""
