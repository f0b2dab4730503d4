from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trajstore.sketch.weights import FLOOR, tensor_weights

IMPLEMENTATIONS = [pytest.param(False, id="numpy"), pytest.param(True, id="torch")]

ALL_ONES = [
    pytest.param([0, 0], [1, 2], id="nothing moved"),
    pytest.param([1, 2], [0, 0], id="no gradients"),
    pytest.param([0, 0], [0, 0], id="nothing moved, no gradients"),
    pytest.param([1, np.nan], [1, 2], id="a displacement is NaN"),
    pytest.param([1, 2], [np.nan, 1], id="a gradient is NaN"),
    pytest.param([1, np.inf], [1, 2], id="a displacement is infinite"),
    pytest.param([1, 2], [1, np.inf], id="a gradient is infinite"),
    pytest.param([1, np.inf], [1, np.inf], id="both are infinite"),
]


def weights(
    displacement_rms: npt.ArrayLike,
    gradient_rms: npt.ArrayLike,
    sizes: npt.ArrayLike,
    on_device: bool,
) -> npt.NDArray[Any]:
    u, q = np.array(displacement_rms, float), np.array(gradient_rms, float)
    if not on_device:
        result = tensor_weights(u, q, np.array(sizes))
    else:
        torch = pytest.importorskip("torch")
        from trajstore.sketch_torch import weights as weights_torch

        counts = torch.tensor(sizes, dtype=torch.float64)
        tensors = (torch.from_numpy(u), torch.from_numpy(q), counts)
        result = weights_torch.tensor_weights(*tensors).numpy()
    assert result.dtype == np.float32
    return result


@pytest.mark.parametrize("on_device", IMPLEMENTATIONS)
def test_weights_follow_the_formula(on_device):
    # U^2 = (30 * 9 + 10 * 25) / 40 = 13, Q^2 = (30 * 1 + 10 * 81) / 40 = 21.
    U, Q = sqrt(13), sqrt(21)
    expected = [
        sqrt((3 + 0.03 * U) / (1 + 0.03 * Q)),
        sqrt((5 + 0.03 * U) / (9 + 0.03 * Q)),
    ]
    assert FLOOR == 0.03
    result = weights([3, 5], [1, 9], [30, 10], on_device)
    np.testing.assert_allclose(result, expected, rtol=1e-7)


@pytest.mark.parametrize("on_device", IMPLEMENTATIONS)
@pytest.mark.parametrize(("displacement_rms", "gradient_rms"), ALL_ONES)
def test_weights_are_one_where_nothing_is_known(
    displacement_rms, gradient_rms, on_device
):
    result = weights(displacement_rms, gradient_rms, [10, 20], on_device)
    assert result.tolist() == [1, 1]


@pytest.mark.parametrize("on_device", IMPLEMENTATIONS)
def test_frozen_and_newly_awakened_tensors_get_finite_weights(on_device):
    # The second tensor has no gradient and does not move, the third moves without a
    # gradient (weight decay), the fourth has a gradient and does not move.
    u, q, sizes = [1, 0, 1, 0], [2, 0, 0, 2], [10, 10, 10, 10]
    U, Q = sqrt(1 / 2), sqrt(2)
    expected = [
        sqrt((1 + 0.03 * U) / (2 + 0.03 * Q)),
        sqrt(U / Q),
        sqrt((1 + 0.03 * U) / (0.03 * Q)),
        sqrt(0.03 * U / (2 + 0.03 * Q)),
    ]
    result = weights(u, q, sizes, on_device)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("on_device", IMPLEMENTATIONS)
def test_equal_tensors_get_equal_weights_for_any_sizes(on_device):
    result = weights([2, 2, 2], [8, 8, 8], [1, 1000, 10**9], on_device)
    np.testing.assert_allclose(result, [0.5, 0.5, 0.5], rtol=1e-7)


def test_weights_are_near_the_best_where_tensors_differ():
    """The smallest possible variance |w g|^2 |v / w|^2 is (sum_l |v_l| |g_l|)^2."""
    rng = np.random.default_rng(0)
    u, q = np.exp(rng.standard_normal((2, 20)))
    sizes = rng.integers(10, 10**6, 20)
    w2 = weights(u, q, sizes, on_device=False).astype(float) ** 2
    variance = (sizes @ (w2 * q**2)) * (sizes @ (u**2 / w2))
    best = (sizes @ (u * q)) ** 2
    unweighted = (sizes @ q**2) * (sizes @ u**2)
    assert best <= variance < 1.02 * best
    assert unweighted > 1.5 * best


def test_numpy_and_torch_agree_on_many_tensors():
    rng = np.random.default_rng(1)
    u, q = 10.0 ** rng.uniform(-12, 3, (2, 200))
    sizes = rng.integers(1, 10**7, 200)
    # Both compute in float64 and round the result to float32.
    np.testing.assert_allclose(
        weights(u, q, sizes, on_device=True),
        weights(u, q, sizes, on_device=False),
        rtol=2e-7,
    )
