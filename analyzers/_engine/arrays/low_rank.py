"""Regression of vectors on a few known directions, layer by layer."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

RIDGE: Final = 1e-8
"""Number added to the diagonal of the Gram matrix after that diagonal is scaled to ones."""


def regress(gram: FloatArray, products: FloatArray) -> FloatArray:
    """Return the coefficients of vectors on a basis, float64 (..., basis)."""
    # Solves (N^-1 G N^-1 + RIDGE I) N c = N^-1 b for c, where N is the diagonal matrix of
    # the norms of the basis vectors, G is `gram` (..., basis, basis), and b is `products`,
    # the inner products of the vectors with the basis (..., basis). The ridge makes c
    # unique where basis vectors coincide. Estimates are unbiased for any c.
    norms = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    scaled = gram * inverse[..., :, None] * inverse[..., None, :]
    scaled = scaled + RIDGE * np.eye(gram.shape[-1])
    # A zero vector has only the ridge in its row and a product of 0, so its c is 0.
    solution = np.linalg.solve(scaled, (products * inverse)[..., None])
    return solution[..., 0] * inverse
