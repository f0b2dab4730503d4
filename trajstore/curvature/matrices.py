"""Curvature matrices of the package curvlinops, in the parameters of a recorded model.

Matrices are never formed: they are linear operators, whose products take a pass over the data.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import Any, Final, Literal

import xarray as xr
from torch import Tensor, nn

Kind = Literal["hessian", "ggn", "fisher", "empirical-fisher"]

OPERATORS: Final[dict[Kind, str]] = {
    "hessian": "HessianLinearOperator",
    "ggn": "GGNLinearOperator",
    "fisher": "FisherMCLinearOperator",
    "empirical-fisher": "EFLinearOperator",
}


def curvature_matrix(
    model: nn.Module,
    loss: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    kind: Kind = "hessian",
    **options: Any,
) -> Any:
    """Return a curvature matrix of the mean loss, as a linear operator of curvlinops.

    Parameters
    ----------
    model : torch.nn.Module
        The model. Rows and columns are its trainable parameters, flat, in the order of
        ``named_parameters()``, which is the order of a recording.
    loss : torch.nn.Module
        The loss, such as `torch.nn.CrossEntropyLoss` or `torch.nn.MSELoss`.
    batches : iterable of (torch.Tensor, torch.Tensor)
        Inputs and targets, which must be the same in every pass: a list or a data loader
        without shuffling and augmentation.
    kind : {"hessian", "ggn", "fisher", "empirical-fisher"}, default: "hessian"
        The Hessian; the generalised Gauss-Newton matrix; the Fisher information matrix with
        labels drawn from the model; or the mean outer product of the examples' gradients.
    **options
        Options of the operator, such as ``mc_samples`` of ``"fisher"``.

    Returns
    -------
    curvlinops.PyTorchLinearOperator
        Operator of shape (param, param). ``matrix @ vector`` takes torch tensors, and
        ``matrix.to_scipy()`` is an operator for SciPy's solvers.

    Raises
    ------
    ValueError
        If `kind` is not one of these.
    """
    if kind not in OPERATORS:
        raise ValueError(f"kind: expected one of {tuple(OPERATORS)}, got {kind!r}.")
    parameters = [p for p in model.parameters() if p.requires_grad]
    operator = getattr(_curvlinops(), OPERATORS[kind])
    return operator(model, loss, parameters, batches, **options)


def trace(matrix: Any, *, n_products: int = 60) -> float:
    """Estimate the trace of a matrix from random products.

    Parameters
    ----------
    matrix : curvlinops.PyTorchLinearOperator
        As `curvature_matrix` returns.
    n_products : int, default: 60
        Number of products; even, and smaller than the number of parameters.

    Returns
    -------
    float
        An unbiased estimate. Vectors are drawn from torch's global random stream.

    References
    ----------
    .. [1] E. N. Epperly, J. A. Tropp, R. J. Webber, "XTrace: Making the Most of Every Sample
       in Stochastic Trace Estimation", SIAM J. Matrix Anal. Appl., 2024, arXiv 2301.07825.
    """
    return float(_curvlinops().xtrace(matrix, n_products))


def spectral_density(
    matrix: Any, *, n_products: int = 64, n_draws: int = 1, n_points: int = 1024
) -> xr.DataArray:
    """Estimate the density of a matrix's eigenvalues by the Lanczos method.

    Parameters
    ----------
    matrix : curvlinops.PyTorchLinearOperator
        As `curvature_matrix` returns.
    n_products : int, default: 64
        Number of products per draw; more resolve finer details.
    n_draws : int, default: 1
        Number of random starting vectors, over which the density is averaged.
    n_points : int, default: 1024
        Number of eigenvalues at which the density is returned.

    Returns
    -------
    xarray.DataArray
        Density, float64 (eigenvalue), whose integral over the coordinate ``eigenvalue`` is
        about 1. Every eigenvalue is smeared into a narrow bell.

    References
    ----------
    .. [1] V. Papyan, "Traces of Class/Cross-Class Structure Pervade Deep Learning Spectra",
       JMLR 21, 2020.
    """
    grid, density = _curvlinops().lanczos_approximate_spectrum(
        matrix, n_products, num_points=n_points, num_repeats=n_draws
    )
    return xr.DataArray(
        density.double().cpu().numpy(),
        {"eigenvalue": grid.double().cpu().numpy()},
        ("eigenvalue",),
        "density",
    )


def _curvlinops() -> Any:
    """Import the optional package when a matrix is asked for."""
    try:
        return import_module("curvlinops")
    except ModuleNotFoundError as error:
        message = (
            f"Curvature matrices need the package {error.name}, which is not installed. "
            'Run\npip install "trajstore[curvature]"'
        )
        raise ModuleNotFoundError(message, name=error.name) from error
