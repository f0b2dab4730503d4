from .hessian import (
    Eigenpairs,
    hessian_product,
    preconditioner_of,
    top_eigenvalues,
)
from .sharpness import Sharpness

__all__ = [
    "Eigenpairs",
    "Sharpness",
    "hessian_product",
    "preconditioner_of",
    "top_eigenvalues",
]
