"""Regression of vectors on a few known directions, layer by layer."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

RIDGE: Final = 1e-8
"""Added to the diagonal of the Gram matrix once that is scaled to ones."""


def regress(gram: FloatArray, products: FloatArray) -> FloatArray:
    """Return coefficients of vectors on a basis, float64 (..., basis)."""
    # Solves (N^-1 G N^-1 + RIDGE I) N c = N^-1 b with N the norms of the basis vectors, G
    # their Gram matrix (..., basis, basis), and b the vectors' products with the basis
    # (..., basis). The ridge decides where basis vectors coincide; any coefficients leave
    # the estimates that use them unbiased.
    norms = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    scaled = gram * inverse[..., :, None] * inverse[..., None, :]
    scaled = scaled + RIDGE * np.eye(gram.shape[-1])
    # The row of a zero vector holds only the ridge, and its product is 0: so is c.
    solution = np.linalg.solve(scaled, (products * inverse)[..., None])
    return solution[..., 0] * inverse
