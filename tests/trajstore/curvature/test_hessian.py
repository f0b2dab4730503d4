"""The largest eigenvalues agree with those of Hessians that are formed as matrices."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from torch import nn

from trajstore.curvature.hessian import (
    hessian_product,
    preconditioner_of,
    top_eigenvalues,
)


def example(dtype: Any = torch.float64) -> tuple[nn.Module, Any, Any]:
    """Return a net of 501 parameters, far from a minimum, and its data."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 18), nn.Tanh(), nn.Linear(18, 12), nn.GELU(), nn.Linear(12, 3)
    ).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.7)
    data = (torch.randn(60, n, dtype=torch.float64).to(dtype) for n in (12, 3))
    return model, *data


def dense_hessian(model: nn.Module, inputs: Any, targets: Any) -> Any:
    """Return the Hessian, with all rows computed together."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def loss(flat: Any) -> Any:
        parts = zip(shapes.items(), flat.split(sizes), strict=True)
        given = {name: part.view(shape) for (name, shape), part in parts}
        outputs = torch.func.functional_call(model, given, (inputs,))
        return (outputs - targets).square().mean()

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return torch.func.jacrev(torch.func.grad(loss))(flat)


def shares(model: nn.Module, inputs: Any, targets: Any, size: int) -> Any:
    def terms() -> Iterator[Any]:
        for x, y in zip(inputs.split(size), targets.split(size), strict=True):
            yield (model(x) - y).square().sum() / targets.numel()

    return terms


@pytest.fixture(scope="module")
def hessian() -> Any:
    return dense_hessian(*example()).numpy()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [60, 25], ids=["at once", "in batches"])
def test_largest_eigenvalues_equal_the_dense_hessians(
    hessian: Any, dtype: Any, size: int
):
    expected = np.linalg.eigvalsh(hessian)
    # A large negative eigenvalue exists, which must not be mistaken for the sharpness.
    assert expected[0] < -0.05 * expected[-1]
    model, inputs, targets = example(dtype)
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == 501
    pairs = top_eigenvalues(shares(model, inputs, targets, size), parameters, n=3)
    np.testing.assert_allclose(pairs.values, expected[:-4:-1], rtol=1e-4)
    for value, vector in zip(*pairs, strict=True):
        np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-6)
        assert np.linalg.norm(hessian @ vector - value * vector) < 3e-4 * expected[-1]


def test_largest_eigenvalues_are_found_even_if_negative_ones_are_larger_in_magnitude():
    diagonal = torch.tensor([-9.0, 2.0, 1.0, 0.5, -3.0, 0.0, 0.1, 0.2, 0.3, 1.5])
    x = nn.Parameter(torch.ones(10))
    pairs = top_eigenvalues(lambda: [0.5 * (diagonal * x.square()).sum()], [x], n=2)
    np.testing.assert_allclose(pairs.values, [2.0, 1.5], rtol=1e-5)


def test_preconditioned_eigenvalues_equal_the_scaled_hessians(hessian: Any):
    model, inputs, targets = example()
    parameters = list(model.parameters())
    P = torch.rand(501, dtype=torch.float64) + 0.01
    scaled = hessian / torch.outer(P, P).sqrt().numpy()
    found = top_eigenvalues(
        shares(model, inputs, targets, 25), parameters, preconditioner=P
    )
    expected = np.linalg.eigvalsh(scaled)[-1]
    np.testing.assert_allclose(found.values, [expected], rtol=1e-4)


def test_products_are_zero_for_unused_parameters():
    used, linear, unused = (nn.Parameter(torch.ones(2)) for _ in range(3))
    vector = torch.arange(6.0)
    found = hessian_product(
        lambda: [used.pow(3).sum() + linear.sum()], [used, linear, unused], vector
    )
    np.testing.assert_array_equal(found, [0, 6, 0, 0, 0, 0])
    only_linear = hessian_product(lambda: [linear.sum()], [linear], vector[:2])
    np.testing.assert_array_equal(only_linear, [0, 0])


def test_a_start_near_the_eigenvector_saves_products():
    model, inputs, targets = example(torch.float32)
    terms, n_calls = shares(model, inputs, targets, 60), 0

    def counted() -> Any:
        nonlocal n_calls
        n_calls += 1
        return terms()

    parameters = list(model.parameters())
    cold = top_eigenvalues(counted, parameters)
    n_cold, n_calls = n_calls, 0
    warm = top_eigenvalues(counted, parameters, start=cold.vectors[0])
    assert n_calls < n_cold
    np.testing.assert_allclose(warm.values, cold.values, rtol=1e-4)


def test_a_loss_that_is_not_finite_has_no_eigenvalues():
    x = nn.Parameter(torch.tensor([1.0, float("nan"), 2.0]))
    pairs = top_eigenvalues(lambda: [x.pow(4).sum()], [x], n=2)
    assert np.isnan(pairs.values).tolist() == [True, True]


def test_as_many_eigenvalues_as_parameters_are_refused():
    x = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="3 eigenvalues were requested for 3 param"):
        top_eigenvalues(lambda: [x.pow(4).sum()], [x], n=3)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop"])
def test_preconditioners_are_the_divisors_of_gradients(name: str):
    """A step with a gradient so small that it changes no state shows the divisor."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
    options = {} if name == "RMSprop" else {"betas": (0.8, 0.95)}
    kind = getattr(torch.optim, name)
    optimizer = kind(parameters, lr=1e-3, weight_decay=0, **options)
    assert preconditioner_of(optimizer, parameters) is None
    squares, momentum = torch.zeros(7), torch.zeros(7)
    beta_1, beta_2 = options.get("betas", (0.0, optimizer.defaults.get("alpha", 0)))
    for _ in range(4):
        gradient = torch.randn(7)
        parameters[0].grad, parameters[1].grad = gradient[:3], gradient[3:].view(2, 2)
        before = torch.cat([p.detach().flatten() for p in parameters])
        optimizer.step()
        after = torch.cat([p.detach().flatten() for p in parameters])
        momentum = beta_1 * momentum + (1 - beta_1) * gradient
        squares = beta_2 * squares + (1 - beta_2) * gradient**2
        P = preconditioner_of(optimizer, parameters)
        assert P is not None
        torch.testing.assert_close(
            before - after, 1e-3 * momentum / P, rtol=1e-4, atol=1e-7
        )


def test_plain_descent_has_no_preconditioner():
    x = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([x], lr=0.1, momentum=0.9)
    x.grad = torch.ones(3)
    optimizer.step()
    assert preconditioner_of(optimizer, [x]) is None


def test_the_former_path_is_deprecated():
    with pytest.warns(DeprecationWarning, match=r"now trajstore\.curvature\.top_"):
        from train.hessian import top_eigenvalues as former
    assert former is top_eigenvalues
