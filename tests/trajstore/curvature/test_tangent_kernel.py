"""The tangent kernel agrees with a dense computation, and moves as theory says."""

import itertools
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from trajstore.curvature import TangentKernel, tangent_kernel


def dense(model: Any, inputs: Any) -> Any:
    """Compute the kernel row by row, with one backward pass for each output, in float64."""
    model = model.double().eval()
    rows = []
    for x in inputs.double():
        outputs = model(x[None]).flatten()
        for output in outputs:
            grads = torch.autograd.grad(
                output, list(model.parameters()), retain_graph=True
            )
            rows.append(torch.cat([g.flatten() for g in grads]))
    jacobian = torch.stack(rows)
    n, k = len(inputs), len(rows) // len(inputs)
    return (jacobian @ jacobian.T).view(n, k, n, k)


class Images(nn.Sequential):
    """Convolutions with batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(48, 4),
        )


@pytest.mark.parametrize("kind", ["perceptron", "images"])
def test_the_kernel_equals_a_dense_computation(kind: str):
    torch.manual_seed(0)
    if kind == "images":
        model: Any = Images()
        inputs = torch.randn(5, 1, 4, 4)
        model(inputs)  # running statistics that are not the initial ones
    else:
        model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))
        inputs = torch.randn(5, 6)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    kernel = tangent_kernel(model, inputs)
    assert model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    expected = dense(model, inputs)
    assert float((kernel - expected).norm() / expected.norm()) < 1e-5


def test_the_kernel_of_a_linear_model_never_changes():
    torch.manual_seed(0)
    model, inputs = nn.Linear(5, 3), torch.randn(8, 5)
    labels = torch.arange(8) % 3
    kernel = TangentKernel(model, inputs, labels)
    first = kernel.measure()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    second = kernel.measure()
    assert second == pytest.approx(first, abs=1e-9)
    assert second["kernel_change"] == pytest.approx(0, abs=1e-9)
    # The kernel of one output is x x^T + 1; all outputs share it.
    gram = (inputs @ inputs.T + 1).double()
    top = torch.linalg.eigvalsh(gram / 8).flip(0)
    assert first["kernel_eigenvalue"] == pytest.approx(float(top[0]), rel=1e-5)
    assert first["kernel_eigenvalue_3"] == pytest.approx(float(top[0]), rel=1e-5)
    y = nn.functional.one_hot(labels, 3).double() - 1 / 3
    by_hand = sum(float(column @ gram @ column) for column in y.T)
    norm = float(gram.norm()) * 3**0.5 * float(y.square().sum())
    assert first["kernel_alignment"] == pytest.approx(by_hand / norm, rel=1e-5)


def test_targets_may_be_numbers_or_left_out():
    model, inputs = nn.Linear(5, 1), torch.randn(4, 5)
    targets = model(inputs).detach()
    facts = TangentKernel(model, inputs, targets, n_eigenvalues=1).measure()
    assert 0 < facts["kernel_alignment"] <= 1
    facts = TangentKernel(model, inputs).measure()
    assert "kernel_alignment" not in facts


def test_kernels_that_are_not_finite_give_nan():
    model = nn.Linear(2, 1)
    inputs = torch.full((2, 2), float("inf"))
    facts = TangentKernel(model, inputs, torch.zeros(2, 1)).measure()
    assert all(math.isnan(value) for value in facts.values())


def test_too_many_outputs_are_refused():
    with pytest.raises(
        ValueError, match=r"each of 20000 outputs, expected at most 8192"
    ):
        tangent_kernel(nn.Linear(1, 10_000), torch.ones(2, 1))


def change_after_training(width: int, seed: int) -> float:
    """Train a network in the scaling of the neural tangent kernel, and measure its change."""
    torch.manual_seed(seed)
    inputs = torch.randn(8, 4)
    targets = torch.sin(inputs.sum(1, keepdim=True))
    hidden, head = nn.Linear(4, width, bias=False), nn.Linear(width, 1, bias=False)
    for layer in (hidden, head):
        nn.init.normal_(layer.weight)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = hidden, head

        def forward(self, x: Any) -> Any:
            return self.head(torch.tanh(self.hidden(x) / 2)) / width**0.5

    model = Scaled()
    kernel = TangentKernel(model, inputs)
    kernel.measure()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
    return kernel.measure()["kernel_change"]


def test_wider_networks_change_less():
    """The change falls at least like the root of the width (arXiv 1902.06720, figure 1)."""
    changes = [
        sum(change_after_training(width, seed) for seed in range(4)) / 4
        for width in (64, 1024)
    ]
    for narrow, wide in itertools.pairwise(changes):
        assert 4 / 1.6 < narrow / wide < 16 * 1.6
