"""A small network, and a record of its steps that the tests keep themselves."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from trajstore.reading.run import Run

Array = npt.NDArray[Any]


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def loss_of(model: nn.Module, step: int) -> Any:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(10, 6, generator=generator)
    return (model(inputs) - inputs[:, :1]).square().mean()


def gradient(model: nn.Module) -> Array:
    return np.concatenate([p.grad.double().numpy().ravel() for p in model.parameters()])  # type: ignore[union-attr]


def iterate(model: nn.Module) -> Array:
    return np.concatenate(
        [p.detach().double().numpy().ravel() for p in model.parameters()]
    )


class Observed:
    """Gradients and iterates of every step, kept by the test."""

    def __init__(self) -> None:
        self.gradients: list[Array] = []
        self.iterates: list[Array] = []

    def before(self, model: nn.Module, factor: float = 1.0) -> None:
        self.gradients.append(gradient(model) / factor)
        self.iterates.append(iterate(model))

    def agrees(self, run: Run, model: nn.Module, rtol: float = 1e-5) -> None:
        """Compare whole gradients and iterates of an exact run."""
        assert run.n_steps == len(self.gradients)
        whole, every = slice(0, run.layout.size), slice(0, run.n_steps)
        gradients = run.stored.large_rows("gradient", every, whole)
        displacements = run.stored.large_rows("displacement", every, whole)
        for k in range(run.n_steps):
            window = int(run.steps.window[k])
            x = run.stored.anchors.decode(window, whole) + displacements[k]
            np.testing.assert_allclose(
                dense(run, gradients[k]), self.gradients[k], rtol, 1e-7
            )
            np.testing.assert_allclose(dense(run, x), self.iterates[k], rtol, 1e-6)
        final = dense(run, run.stored.vector("final", whole))
        np.testing.assert_array_equal(final, iterate(model))


def dense(run: Run, flat: Array) -> Array:
    return np.concatenate([t.ravel() for t in run.layout.unflatten(flat).values()])


def products(seen: Observed) -> Array:
    """Return <g_k, g_(k-1)> for every step, with 0 for the first step."""
    g = np.stack(seen.gradients)
    return np.concatenate([[0.0], (g[1:] * g[:-1]).sum(1)])


def adjacent(run: Run) -> Array:
    values: Array = run.steps.grad_dot_previous.sum("layer", skipna=False).values
    return values


def loss_of_array(seen: Observed, step: int) -> float:
    model = net()
    torch.nn.utils.vector_to_parameters(
        torch.from_numpy(seen.iterates[step]).float(), model.parameters()
    )
    return float(loss_of(model, step).detach())
