"""Backends that measure one step: Numba, plain torch and Triton."""
