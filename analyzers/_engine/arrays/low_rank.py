"""Part of a vector along a few known directions, tensor by tensor."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

RIDGE: Final = 1e-8
"""Added to the diagonal of the Gram matrix once that is scaled to ones."""


def regress(gram: FloatArray, products: FloatArray) -> FloatArray:
    """Coefficients of the regression of vectors on a basis.

    Solves ``(N^-1 G N^-1 + RIDGE I) N c = N^-1 b`` with N the norms of the basis
    vectors. The ridge decides where basis vectors coincide; any coefficients leave the
    estimates that use them unbiased.

    Parameters
    ----------
    gram : numpy.ndarray
        Inner products G of the basis vectors, shape ``(..., basis, basis)``.
    products : numpy.ndarray
        Inner products b of the vectors with the basis, shape ``(..., basis)``.

    Returns
    -------
    numpy.ndarray
        float64, shape ``(..., basis)``; 0 for a basis vector that is 0.
    """
    norms = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    scaled = gram * inverse[..., :, None] * inverse[..., None, :]
    scaled = scaled + RIDGE * np.eye(gram.shape[-1])
    # The row of a zero vector is left with the ridge alone, and its product is 0.
    solution = np.linalg.solve(scaled, (products * inverse)[..., None])
    return solution[..., 0] * inverse
