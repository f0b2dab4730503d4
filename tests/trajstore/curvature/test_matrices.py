"""Matrices of curvlinops are those of the definitions, in the order of the parameters."""

import sys
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from torch import nn

from trajstore.curvature.matrices import trace

# Torch itself calls torch.jit.script for forward-mode derivatives.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture(name="matrices", scope="module")
def _matrices() -> Any:
    pytest.importorskip("curvlinops")
    from trajstore import curvature

    return curvature


def example() -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return model, torch.randn(40, 5, dtype=torch.float64), torch.randint(3, (40,))


def dense(model: nn.Module, function: Any) -> Any:
    """Return the derivative of a function of named parameters, with flat columns."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def of_flat(vector: Any) -> Any:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        named = zip(shapes.items(), parts, strict=True)
        return function({name: part.view(shape) for (name, shape), part in named})

    return flat, of_flat


def test_hessian_ggn_and_empirical_fisher_equal_dense_matrices(matrices: Any):
    model, x, y = example()
    loss = nn.CrossEntropyLoss()
    batches = list(zip(x.split(16), y.split(16), strict=True))

    def outputs(named: Any) -> Any:
        return torch.func.functional_call(model, named, (x,))

    flat, total = dense(model, lambda named: loss(outputs(named), y))
    hessian = torch.func.jacrev(torch.func.grad(total))(flat)
    _, flat_outputs = dense(model, outputs)
    jacobian = torch.func.jacrev(flat_outputs)(flat)  # (example, class, param)
    p = flat_outputs(flat).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    ggn = torch.einsum("nap,nab,nbq->pq", jacobian, inner, jacobian) / len(x)
    slopes = torch.einsum(
        "nap,na->np", jacobian, p - nn.functional.one_hot(y, 3).double()
    )
    eye = torch.eye(len(flat), dtype=torch.float64)
    for kind, expected in (
        ("hessian", hessian),
        ("ggn", ggn),
        ("empirical-fisher", slopes.T @ slopes / len(x)),
    ):
        matrix = matrices.curvature_matrix(model, loss, batches, kind=kind)
        np.testing.assert_allclose(
            (matrix @ eye).detach(), expected, rtol=1e-7, atol=1e-10
        )
    fisher = matrices.curvature_matrix(
        model, loss, batches, kind="fisher", mc_samples=2000
    )
    # The Fisher matrix is the Gauss-Newton matrix in expectation.
    assert (fisher @ eye - ggn).norm() < 0.1 * ggn.norm()


def test_trace_and_density_of_the_hessian(matrices: Any):
    model, x, y = example()
    loss = nn.CrossEntropyLoss()
    matrix = matrices.curvature_matrix(model, loss, [(x, y)])
    eigenvalues = np.linalg.eigvalsh(
        (matrix @ torch.eye(matrix.shape[1], dtype=torch.float64)).detach().numpy()
    )
    # With nearly as many products as parameters, the estimate is nearly exact.
    n = matrix.shape[0] // 2 * 2 - 2
    assert matrices.trace(matrix, n_products=n) == pytest.approx(
        eigenvalues.sum(), rel=0.02
    )
    density = matrices.spectral_density(matrix, n_products=30, n_draws=10)
    assert float(density.integrate("eigenvalue")) == pytest.approx(1, abs=0.05)
    mean = float((density * density["eigenvalue"]).integrate("eigenvalue"))
    assert mean == pytest.approx(eigenvalues.mean(), rel=0.2)


def test_unknown_kinds_are_refused(matrices: Any):
    model, x, y = example()
    with pytest.raises(ValueError, match=r"kind: expected one of .*'ggn'.* got 'jac'"):
        matrices.curvature_matrix(model, nn.CrossEntropyLoss(), [(x, y)], kind="jac")


def test_the_missing_package_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(ModuleNotFoundError, match=r'install "trajstore\[curvature\]"'):
        trace(None)
