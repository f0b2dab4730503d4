"""Arithmetic of the analyses in this package, on arrays."""
