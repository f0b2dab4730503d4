"""Largest eigenvalues of the Hessian of a loss, by Hessian-vector products.

The Hessian is never formed. Each product needs two backward passes (B. A. Pearlmutter, "Fast
Exact Multiplication by the Hessian", Neural Computation 6, 1994), and ARPACK's Lanczos method
needs about ten products.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple
from warnings import warn

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Adam, Optimizer, RMSprop

Terms = Callable[[], Iterable[Tensor]]
"""A function that computes the summands of a loss, such as the contributions of batches."""

FloatArray = npt.NDArray[np.float64]

MIN_LANCZOS_VECTORS: Final = 8
"""Smallest number of Lanczos vectors; few suffice if the search starts near the solution."""

MAX_RESTARTS: Final = 200


class Eigenpairs(NamedTuple):
    """Eigenvalues in descending order, with their eigenvectors."""

    values: FloatArray  # float64, (eigenvalue,)
    vectors: FloatArray  # float64, (eigenvalue, param), each of norm 1


def hessian_product(
    terms: Terms, parameters: Sequence[nn.Parameter], vector: Tensor
) -> Tensor:
    """Return the product of a loss's Hessian with a vector, (param,)."""
    sizes = [p.numel() for p in parameters]
    parts = [
        part.view_as(p) for part, p in zip(vector.split(sizes), parameters, strict=True)
    ]
    product = torch.zeros_like(vector)
    # Fused attention kernels have no second derivatives.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for term in terms():
            gradients = torch.autograd.grad(
                term, parameters, create_graph=True, materialize_grads=True
            )
            # Gradients of linear terms are constant.
            nonconstant = [
                (gradient, part)
                for gradient, part in zip(gradients, parts, strict=True)
                if gradient.requires_grad
            ]
            if nonconstant:
                products = torch.autograd.grad(
                    [gradient for gradient, _ in nonconstant],
                    parameters,
                    [part for _, part in nonconstant],
                    materialize_grads=True,
                )
                product += torch.cat([p.flatten() for p in products])
    return product


def top_eigenvalues(
    terms: Terms,
    parameters: Sequence[nn.Parameter],
    *,
    n: int = 1,
    preconditioner: Tensor | None = None,
    start: FloatArray | None = None,
    tolerance: float = 1e-4,
) -> Eigenpairs:
    r"""Find the largest eigenvalues of the Hessian of a loss.

    With a diagonal preconditioner :math:`P`, find the largest eigenvalues of
    :math:`P^{-1/2} H P^{-1/2}`, which are also the eigenvalues of :math:`P^{-1} H`.

    Parameters
    ----------
    terms : callable
        Returns the summands of the loss; every call must return the same summands.
    parameters : sequence of torch.nn.Parameter
        Parameters with respect to which the loss is differentiated, all on one device.
    n : int, default: 1
        Number of eigenvalues.
    preconditioner : torch.Tensor, optional
        Positive diagonal of :math:`P`, shape ``(param,)``.
    start : numpy.ndarray, optional
        Starting vector, shape ``(param,)``. The sum of eigenvectors found at earlier
        parameters saves most of the work. Default: fixed random numbers.
    tolerance : float, default: 1e-4
        Largest residual ``|H v - lambda v|`` of an eigenvector v, relative to its eigenvalue
        lambda.

    Returns
    -------
    Eigenpairs
        ``values``, float64 (eigenvalue,), in descending order, and ``vectors``, float64
        (eigenvalue, param), each of norm 1. All are NaN if the loss is not finite.

    Raises
    ------
    ValueError
        If there are `n` parameters or fewer.

    Warns
    -----
    UserWarning
        If the iteration does not converge; all results are NaN in that case.

    Notes
    -----
    Products are computed in the type of the parameters, usually float32, and everything else
    in float64. The relative error of an eigenvalue is at most `tolerance` and usually far
    smaller, because it falls with the square of the residual. Memory holds the graph of one
    summand and ``max(2 n + 1, 8)`` float64 vectors, each as long as all parameters together.

    References
    ----------
    .. [1] J. Cohen, S. Kaur, Y. Li, J. Z. Kolter, A. Talwalkar, "Gradient Descent on Neural
       Networks Typically Occurs at the Edge of Stability", ICLR 2021, arXiv 2103.00065.
    """
    size = sum(p.numel() for p in parameters)
    if size <= n:
        raise ValueError(
            f"{n} eigenvalues were requested for {size} parameters; expected fewer "
            "eigenvalues than parameters."
        )
    like = torch.cat([p.detach().flatten() for p in parameters])
    root = torch.ones_like(like) if preconditioner is None else preconditioner.sqrt()

    def product(vector: npt.NDArray[Any]) -> FloatArray:
        scaled = torch.from_numpy(vector.ravel()).to(like) / root
        result = hessian_product(terms, parameters, scaled) / root
        return result.double().cpu().numpy()

    if start is None:
        start = np.random.default_rng(0).standard_normal(size)
    if not np.isfinite(product(start)).all():
        return _all_nan(n, size)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    try:
        values, vectors = eigsh(
            operator,
            n,
            which="LA",
            v0=start,
            ncv=min(size, max(2 * n + 1, MIN_LANCZOS_VECTORS)),
            tol=tolerance,
            maxiter=MAX_RESTARTS,
        )
    except ArpackNoConvergence as error:
        warn(f"The eigenvalues of the Hessian are NaN: {error}", stacklevel=2)
        return _all_nan(n, size)
    order = np.argsort(values)[::-1]
    return Eigenpairs(values[order], np.ascontiguousarray(vectors.T[order]))


def _all_nan(n: int, size: int) -> Eigenpairs:
    return Eigenpairs(np.full(n, np.nan), np.full((n, size), np.nan))


def preconditioner_of(
    optimizer: Optimizer, parameters: Sequence[nn.Parameter]
) -> Tensor | None:
    """Return the numbers by which an optimizer divides its gradients, (param,), or None."""
    # None is returned before the first step, and for optimizers other than Adam and RMSprop.
    # The divisors, without the learning rate, are (1 - beta_1^t) (sqrt(v_t / (1 - beta_2^t))
    # + eps) for Adam after t steps, and sqrt(v_t) + eps for RMSprop, where v_t is the average
    # of squared gradients. v_t does not include the gradient of the next step yet. J. Cohen
    # et al., "Adaptive Gradient Methods at the Edge of Stability", 2022, arXiv 2207.14484.
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    parts = []
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        group = groups[id(parameter)]
        if isinstance(optimizer, Adam) and "exp_avg_sq" in state:
            beta_1, beta_2 = group["betas"]
            t = float(state["step"])
            v = state.get("max_exp_avg_sq", state["exp_avg_sq"])
            denominator = (v / (1 - beta_2**t)).sqrt() + group["eps"]
            parts.append(((1 - beta_1**t) * denominator).flatten())
        elif isinstance(optimizer, RMSprop) and "square_avg" in state:
            parts.append((state["square_avg"].sqrt() + group["eps"]).flatten())
        else:
            return None
    return torch.cat(parts)
