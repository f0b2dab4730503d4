"""The half-space has the loss and gradients of NumPy, and the paper's smallest loss."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
minimize_scalar = pytest.importorskip("scipy.optimize").minimize_scalar

from train.workloads import half_space
from train.workloads.half_space import HalfSpace, half_space_data, half_space_loss


def loss_and_gradient(x: Any, points: Any, signs: Any) -> tuple[float, Any]:
    total, gradient = 0.0, np.zeros(len(x))
    for a, b in zip(points, signs, strict=True):
        p = 1 / (1 + np.exp(b * (a @ x)))
        total += p + 1e-5 * (x @ x) / 2
        gradient += -b * p * (1 - p) * a + 1e-5 * x
    return total / len(points), gradient / len(points)


@pytest.mark.parametrize("part", [slice(3, 4), slice(None)], ids=["one", "all"])
def test_loss_and_gradient_follow_the_formula(part: slice):
    torch.manual_seed(0)
    model = HalfSpace().double()
    points, signs = (t[part].double() for t in half_space_data(1).train.tensors)  # type: ignore[attr-defined]
    loss = half_space_loss(model(points), signs)
    loss.backward()
    x = model.x.detach().numpy()
    value, gradient = loss_and_gradient(x, points.numpy(), signs.numpy())
    assert loss.item() == pytest.approx(value, rel=1e-12)
    assert model.x.grad is not None
    np.testing.assert_allclose(model.x.grad, gradient, rtol=1e-10)


def test_the_smallest_loss_of_a_point_is_the_papers():
    """Minimize along the point itself, because other directions only make x longer."""
    found = minimize_scalar(
        lambda r: 1 / (1 + np.exp(r)) + half_space.REGULARISATION * r**2 / 2,
        bounds=(1, 30),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert round(found.fun, 9) == half_space.MIN_POINT_LOSS == 0.000523853


def test_points_are_twenty_in_each_class_and_of_norm_one():
    points, signs = half_space_data(0).train.tensors  # type: ignore[attr-defined]
    assert points.shape == (40, half_space.N_FEATURES)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(40))
    assert [(signs == b).sum().item() for b in (1, -1)] == [20, 20]
    other = half_space_data(1).train.tensors[0]  # type: ignore[attr-defined]
    assert not torch.equal(points, other)


def test_the_loss_of_the_half_space_is_not_convex():
    point, sign = torch.eye(half_space.N_FEATURES)[:1], torch.ones(1)
    model = HalfSpace()
    losses = []
    for r in (-4.0, -2.0, 0.0):
        model.x.data.zero_()[0] = r
        losses.append(half_space_loss(model(point), sign).item())
    assert losses[1] > (losses[0] + losses[2]) / 2
