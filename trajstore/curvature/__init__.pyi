from .hessian import (
    Eigenpairs,
    hessian_product,
    preconditioner_of,
    top_eigenvalues,
)
from .matrices import curvature_matrix, spectral_density, trace
from .sharpness import Sharpness
from .tangent_kernel import TangentKernel, tangent_kernel

__all__ = [
    "Eigenpairs",
    "Sharpness",
    "TangentKernel",
    "curvature_matrix",
    "hessian_product",
    "preconditioner_of",
    "spectral_density",
    "tangent_kernel",
    "top_eigenvalues",
    "trace",
]
