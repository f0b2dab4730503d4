"""Models with unusual kinds of parameters."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from tests.trajstore.recording.regression import Training


class Module(nn.Module):
    """A module with the given parameters, by name."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            setattr(self, name, parameter)


def vector(*shape: int, dtype: Any = None, seed: int = 0, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator).to(dtype or torch.float32)
    return nn.Parameter(values, **options)


def pull(*parameters: Any) -> Any:
    """Return a loss that pulls every parameter to 0.3, with a different weight."""
    return sum(
        (i + 1) * (p.float() - 0.3).square().sum() for i, p in enumerate(parameters)
    )


def sgd(model: nn.Module, *, lr: float = 0.05) -> Any:
    return torch.optim.SGD(model.parameters(), lr=lr)


def frozen() -> Training:
    m = Module(free=vector(30, 50), still=vector(7, requires_grad=False))
    return Training(m, sgd(m), lambda _: pull(m.free))


def sometimes_without_gradient() -> Training:
    m = Module(always=vector(9), sometimes=vector(1100))
    return Training(
        m,
        sgd(m),
        lambda step: pull(m.always, m.sometimes) if step % 3 else pull(m.always),
    )


def tied() -> Training:
    m = Module(one=nn.Linear(6, 6), two=nn.Linear(6, 6))
    m.two.weight = m.one.weight  # type: ignore[union-attr]
    inputs = torch.ones(2, 6)
    return Training(m, sgd(m), lambda _: pull(m.two(m.one(inputs))))  # type: ignore[operator]


def groups() -> Training:
    m = Module(a=vector(5), b=vector(1030), c=vector(3))
    # The order of the groups differs from the order in the model.
    optimizer = torch.optim.SGD(
        [{"params": [m.c, m.a], "lr": 0.1}, {"params": [m.b], "lr": 0.01}]
    )
    return Training(m, optimizer, lambda _: pull(m.a, m.b, m.c))


def half(dtype: Any) -> Callable[[], Training]:
    def make() -> Training:
        m = Module(low=vector(20, 60, dtype=dtype), full=vector(5))
        return Training(m, sgd(m), lambda _: pull(m.low, m.full))

    return make


def sparse() -> Training:
    m = Module(words=nn.Embedding(50, 30, sparse=True), bias=vector(30))

    def loss(step: int) -> Any:
        # The gradient is not coalesced, because words are repeated.
        index = torch.tensor([step, 3, 3, 49])
        return pull(m.words(index) + m.bias)  # type: ignore[operator]

    return Training(m, sgd(m), loss)


def zero_size() -> Training:
    m = Module(a=vector(5), none=vector(0, 4), b=vector(6))
    return Training(m, sgd(m), lambda _: pull(m.a, m.none, m.b))


def one_parameter() -> Training:
    m = Module(x=vector())
    return Training(m, sgd(m), lambda _: pull(m.x))


def not_contiguous() -> Training:
    m = Module(t=nn.Parameter(vector(40, 30).detach().T), b=vector(3))
    return Training(m, sgd(m), lambda _: pull(m.t, m.b))


KINDS = {
    "frozen": frozen,
    "sometimes": sometimes_without_gradient,
    "tied": tied,
    "groups": groups,
    "float16": half(torch.float16),
    "bfloat16": half(torch.bfloat16),
    "float64": half(torch.float64),
    "sparse": sparse,
    "zero-size": zero_size,
    "one-parameter": one_parameter,
    "not-contiguous": not_contiguous,
}
