from .hessian import (
    Eigenpairs,
    hessian_product,
    preconditioner_of,
    top_eigenvalues,
)
from .matrices import curvature_matrix, spectral_density, trace
from .sharpness import Sharpness

__all__ = [
    "Eigenpairs",
    "Sharpness",
    "curvature_matrix",
    "hessian_product",
    "preconditioner_of",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]
