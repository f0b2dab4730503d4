"""Hessian products and sharpness of a model."""
