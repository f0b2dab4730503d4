"""Curvature of the loss at the parameters of a model, for any training loop.

`top_eigenvalues` finds the largest eigenvalues of the Hessian, `Sharpness` measures them again
and again during training, and `curvature_matrix` offers the matrices of the package curvlinops.

Imports `evaluation`, torch and SciPy. Start reading with `hessian`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
