"""Largest eigenvalues of the Hessian of a loss, by Hessian-vector products.

The Hessian is never formed. A product takes two backward passes (B. A. Pearlmutter, "Fast
Exact Multiplication by the Hessian", Neural Computation 6, 1994), and Lanczos' method in
ARPACK takes about ten products.
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
"""Computes the summands of a loss at every call, such as the shares of batches."""

FloatArray = npt.NDArray[np.float64]

MIN_LANCZOS_VECTORS: Final = 8
"""Few are enough when the search starts near the eigenvector."""

MAX_RESTARTS: Final = 200


class Eigenpairs(NamedTuple):
    """Eigenvalues in descending order, with their eigenvectors."""

    values: FloatArray  # float64, (eigenvalue,)
    vectors: FloatArray  # float64, (eigenvalue, param), each of norm 1


def hessian_product(
    terms: Terms, parameters: Sequence[nn.Parameter], vector: Tensor
) -> Tensor:
    """Multiply the Hessian of a loss by a vector, (param,), to one like it."""
    sizes = [p.numel() for p in parameters]
    parts = [
        part.view_as(p) for part, p in zip(vector.split(sizes), parameters, strict=True)
    ]
    product = torch.zeros_like(vector)
    # The fused kernels of attention have no second derivatives.
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

    With a diagonal preconditioner :math:`P`, the largest eigenvalues of
    :math:`P^{-1/2} H P^{-1/2}`, which equal the eigenvalues of :math:`P^{-1} H`.

    Parameters
    ----------
    terms : callable
        Returns the summands of the loss, the same ones at every call.
    parameters : sequence of torch.nn.Parameter
        Parameters by which the loss is differentiated, all on one device.
    n : int, default: 1
        Number of eigenvalues.
    preconditioner : torch.Tensor, optional
        Positive, shape ``(param,)``.
    start : numpy.ndarray, optional
        Starting vector, shape ``(param,)``: the sum of eigenvectors found at earlier
        parameters saves most of the work. Default: fixed random numbers.
    tolerance : float, default: 1e-4
        Largest residual |H v - lambda v| over lambda.

    Returns
    -------
    Eigenpairs
        ``values``, float64 (eigenvalue,), in descending order, and ``vectors``, float64
        (eigenvalue, param), each of norm 1. NaN where the loss is not finite.

    Raises
    ------
    ValueError
        If there are not more parameters than `n`.

    Warns
    -----
    UserWarning
        If the iteration does not converge; eigenvalues are then NaN.

    Notes
    -----
    Products are computed in the type of the parameters, mostly float32, and the rest in
    float64. An eigenvalue is off by at most `tolerance` times itself, and mostly by far
    less: the error falls with the square of the residual. Memory: the graph of one summand,
    and ``max(2 n + 1, 8)`` float64 vectors of the length of the parameters.

    References
    ----------
    .. [1] J. Cohen, S. Kaur, Y. Li, J. Z. Kolter, A. Talwalkar, "Gradient Descent on Neural
       Networks Typically Occurs at the Edge of Stability", ICLR 2021, arXiv 2103.00065.
    """
    size = sum(p.numel() for p in parameters)
    if size <= n:
        raise ValueError(
            f"{n} eigenvalues were asked for, of {size} parameters; ask for fewer."
        )
    like = torch.cat([p.detach().flatten() for p in parameters])
    root = torch.ones_like(like) if preconditioner is None else preconditioner.sqrt()

    def product(vector: npt.NDArray[Any]) -> FloatArray:
        scaled = torch.from_numpy(vector.ravel()).to(like) / root
        found = hessian_product(terms, parameters, scaled) / root
        return found.double().cpu().numpy()

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
        warn(f"Eigenvalues of the Hessian are left out: {error}", stacklevel=2)
        return _all_nan(n, size)
    order = np.argsort(values)[::-1]
    return Eigenpairs(values[order], np.ascontiguousarray(vectors.T[order]))


def _all_nan(n: int, size: int) -> Eigenpairs:
    return Eigenpairs(np.full(n, np.nan), np.full((n, size), np.nan))


def preconditioner_of(
    optimizer: Optimizer, parameters: Sequence[nn.Parameter]
) -> Tensor | None:
    """Return the divisor of an adaptive optimizer's gradients, (param,), or None."""
    # Before the learning rate: (1 - beta_1^t) (sqrt(v_t / (1 - beta_2^t)) + eps) of Adam
    # after t steps, sqrt(v_t) + eps of RMSprop. v_t does not contain the gradient of the
    # next step yet. J. Cohen et al., "Adaptive Gradient Methods at the Edge of Stability",
    # 2022, arXiv 2207.14484.
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
